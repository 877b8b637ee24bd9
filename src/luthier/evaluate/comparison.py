"""One measurement against another's: better, not worse by more than a margin, or the rows do not tell."""

import math
from dataclasses import dataclass
from typing import Literal

from luthier.core.errors import RecipeError
from luthier.core.finding import Finding
from luthier.evaluate.bounds import Bound, amount
from luthier.evaluate.judgement import Difference, Judgement, Outcome, advice, not_finite, rows_to_clear, too_few
from luthier.evaluate.metrics import SHARES, Measurement, Unit, show
from luthier.recipe.proof import COMPARISON
from luthier.score import intervals
from luthier.score.intervals import Interval
from luthier.score.paired import PairedDifference, paired, paired_times
from luthier.score.sequence import Level

Claim = Literal["better", "not worse", "not better"]

OPPOSITE: dict[Outcome, Outcome] = {"holds": "violated", "violated": "holds", "undecided": "undecided"}
CONTRARY: dict[Claim, Claim | Literal["worse"]] = {"better": "not better", "not better": "better", "not worse": "worse"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`metric claim than other by margin`: the least improvement (in the metric's unit; of what is not worse, a negative one) over `factor`
    times the other's value. A margin in % is points of a share, and of all else a part of the other's value."""

    text: str
    claim: Claim
    other: Literal["baseline", "base"]
    least: float
    factor: float

    def outcome(self, gain: Interval) -> Outcome:
        """By the interval of the improvement."""
        found = Bound(text=self.text, comparison=">", value=self.least).outcome(gain)
        return OPPOSITE[found] if self.claim == "not better" else found

    def told(self, outcome: Outcome) -> str:
        """What was shown, in words."""
        contrary = self.text.replace(self.claim, CONTRARY[self.claim], 1)
        return {
            "holds": f"shown to be {self.text}",
            "violated": f"shown to be {contrary}",
            "undecided": f"neither shown to be {self.text} nor {contrary}",
        }[outcome]


def is_comparison(text: str) -> bool:
    """Whether a bound compares with another's measurement."""
    return COMPARISON.fullmatch(text) is not None


def parse(text: str, measurement: Measurement, where: str) -> Comparison:
    """A comparison such as 'not worse than base by 2 %' in the unit of its metric; raises RecipeError where they do not fit."""
    found = COMPARISON.fullmatch(text)
    if found is None:
        raise RecipeError(f"bound {text!r} cannot be read", where=where, change="write 'better than baseline'")
    sign = -1.0 if found["claim"] == "not worse" else 1.0
    least, factor = 0.0, 1.0
    if found["unit"] == "%" and measurement.unit != "share":
        factor = 1 + sign * (1 if measurement.higher_is_better else -1) * float(found["value"]) / 100
    elif found["value"]:
        least = sign * amount(found["value"], found["unit"] or "", text, measurement, where)
    claim, other = found["claim"], found["other"]
    return Comparison(text=text.strip(), claim=claim, other=other, least=least, factor=factor)  # type: ignore[arg-type]  # words of the pattern


def judge_against(tuned: Measurement, other: Measurement, comparison: Comparison, level: Level) -> Judgement:
    """A metric against another's: by the interval of the improvement, which is upwards or downwards as the metric has it."""
    if not (math.isfinite(tuned.value) and math.isfinite(other.value)):
        return not_finite(tuned.metric, comparison.text)
    change = difference(tuned, other, level, comparison.factor)
    gain = change.interval if tuned.higher_is_better else _turned(change.interval)
    outcome = comparison.outcome(gain)
    part = f" from {comparison.factor:.0%} of that" if comparison.factor != 1 else ""
    reason = (
        f"{tuned.metric} is {comparison.told(outcome)}: {show(tuned.value, tuned.unit)} against {show(other.value, tuned.unit)}, "
        f"difference{part} {signed(change.interval, tuned.unit)}{_how(change)}"
    )
    needed = 0.0 if outcome != "undecided" else rows_to_clear(gain, comparison.least, tuned.statistic, level)
    findings = (*_once(tuned), *_unpaired(tuned.metric, change))
    return Judgement(
        metric=tuned.metric,
        bound=comparison.text,
        outcome=outcome,
        reason=f"{reason}; {advice(needed, gain.n)}" if needed else reason,
        findings=(*(too_few(tuned.metric, gain.n, needed) if needed else ()), *findings),
        measured=tuned.interval(level),
        other=other.value,
        difference=change,
        rows_needed=needed,
    )


def difference(tuned: Measurement, other: Measurement, level: Level, factor: float = 1.0) -> Difference:
    """Tuned − factor · other: of the pairs, where there are rows that both answered; else of two independent estimates."""
    known = dict(zip(other.sample.rows, other.sample.values, strict=True))
    mine = dict(zip(tuned.sample.rows, range(len(tuned.sample.rows)), strict=True))
    both = [place for row, place in mine.items() if row in known]
    if not both or tuned.statistic == "number" or other.statistic == "number":
        apart = intervals.difference(_independent(tuned, level), _scaled(_independent(other, level), factor))
        return Difference(interval=apart)
    first = [tuned.sample.values[place] for place in both]
    second = [factor * known[tuned.sample.rows[place]] for place in both]
    keys = [tuned.sample.keys[place] for place in both] if tuned.sample.keys else []
    found: PairedDifference | Interval
    if tuned.unit == "share":
        found = paired(first, second, level, keys)
    elif tuned.sample.weights:
        weights = [tuned.sample.weights[place] for place in both]
        found = intervals.ratio([one - two for one, two in zip(first, second, strict=True)], weights, level.fixed, keys)
    else:
        found = paired_times(first, second, SHARES.get(tuned.statistic), level)
    interval, p_value = (found, None) if isinstance(found, Interval) else (found.interval, found.p_value)
    unpaired = len(mine) + len(known) - 2 * len(both)
    return Difference(interval=interval, p_value=p_value, pairs=len(both), unpaired=unpaired)


def not_compared(metric: str, comparison: Comparison) -> Judgement:
    """A comparison with one that does not have the metric: nothing is shown, so nothing is deployed."""
    message = f"evaluate the {comparison.other} on the task of {metric}, or give evaluation.baseline a number for it"
    finding = Finding(code="not_compared", severity="warn", message=message, evidence={"metric": metric})
    reason = f"{metric} was never compared: the {comparison.other} has no {metric}"
    return Judgement(metric=metric, bound=comparison.text, outcome="undecided", reason=reason, findings=(finding,))


def _independent(measurement: Measurement, level: Level) -> Interval:
    """The interval to subtract: Wilson's for right and wrong answers, which makes the difference Newcombe's."""
    sample = measurement.sample
    alone = len(set(sample.keys)) == len(sample.keys)
    if measurement.statistic == "mean" and measurement.unit == "share" and alone and all(value in (0, 1) for value in sample.values):
        return intervals.wilson(measurement.value * measurement.n, measurement.n, level.fixed)
    return measurement.interval(level)


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(value=factor * interval.value, low=factor * interval.low, high=factor * interval.high, n=interval.n)


def _turned(change: Interval) -> Interval:
    return Interval(value=-change.value, low=-change.high, high=-change.low, n=change.n)


def _once(tuned: Measurement) -> tuple[Finding, ...]:
    """A rate or a loss of which only the number is known would be another, if it were measured again."""
    if tuned.statistic != "number" or tuned.unit not in ("tokens/s", "nats"):
        return ()
    message = f"{tuned.metric} was measured once: whether it would be as different another time is not known"
    return (Finding(code="measured_once", severity="warn", message=message, evidence={"metric": tuned.metric}),)


def _unpaired(metric: str, change: Difference) -> tuple[Finding, ...]:
    if not change.pairs or not change.unpaired:
        return ()
    message = f"{metric}: {change.unpaired} rows were answered by one side only and do not count in the comparison of {change.pairs} pairs"
    evidence: dict[str, float | int | str] = {"pairs": change.pairs, "unpaired": change.unpaired}
    return (Finding(code="unpaired_rows", severity="note", message=message, evidence=evidence),)


def _how(change: Difference) -> str:
    if change.interval.low == change.interval.high:
        return ""
    p_value = f", p = {change.p_value:.2g}" if change.p_value is not None else ""
    return f" ({change.pairs} pairs of rows{p_value})" if change.pairs else " (not paired)"


def signed(change: Interval, unit: Unit) -> str:
    """`+15.0 points (3.1 … 29.9)` for shares, in the metric's own unit else."""
    if unit == "share":
        return f"{100 * change.value:+.1f} points ({100 * change.low:+.1f} … {100 * change.high:+.1f})"
    if change.low == change.high:
        return show(change.value, unit)
    return f"{show(change.value, unit)} ({show(change.low, unit)} … {show(change.high, unit)})"

"""One bound against one measurement: it holds, it is violated, or the rows do not tell."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.errors import RecipeError
from luthier.core.finding import Finding
from luthier.evaluate.metrics import SHARES, Measurement, Unit, show
from luthier.recipe.proof import BOUND, COMPARISON
from luthier.score import intervals
from luthier.score.intervals import Interval
from luthier.score.paired import PairedDifference, paired, paired_times
from luthier.score.sequence import Level

Outcome = Literal["holds", "violated", "undecided"]
Claim = Literal["better", "not worse", "not better"]

FACTORS: dict[Unit, dict[str, float]] = {
    "share": {"": 1.0, "%": 0.01},
    "s": {"": 1.0, "s": 1.0, "ms": 1e-3},
    "bytes": {"": 1.0, "MB": 1e6, "GB": 1e9},
    "tokens/s": {"": 1.0},
    "nats": {"": 1.0},
}
"""How a bound's number becomes the metric's own unit."""
OPPOSITE: dict[Outcome, Outcome] = {"holds": "violated", "violated": "holds", "undecided": "undecided"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """`metric comparison value`, the value in the metric's unit; `text` is the recipe's."""

    text: str
    comparison: str
    value: float

    def outcome(self, interval: Interval) -> Outcome:
        """It holds when the interval's near end satisfies it, is violated when the far end breaks it."""
        at_least, strict = self.comparison.startswith(">"), len(self.comparison) == 1
        sign = 1.0 if at_least else -1.0  # turned so that more is better
        low, high = sorted((sign * interval.low, sign * interval.high))
        bound = sign * self.value
        if low > bound or (low == bound and not strict):
            return "holds"
        return "violated" if high < bound or (high == bound and strict) else "undecided"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Tuned − other, by the rows that both answered where there are such; how many of either side have no partner."""

    interval: Interval
    p_value: float | None = None
    pairs: int = 0
    unpaired: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What became of one bound: the outcome, a plain sentence with the numbers, the numbers, and findings."""

    metric: str
    bound: str
    outcome: Outcome
    reason: str
    findings: tuple[Finding, ...] = ()
    measured: Interval | None = None
    other: float | None = None
    difference: Difference | None = None
    rows_needed: float = 0
    """In all, to decide what is undecided with 80 % probability; infinite where no number does."""

    @property
    def more_rows(self) -> float:
        """Rows that are missing."""
        rows = self.difference.interval.n if self.difference else self.measured.n if self.measured else 0
        return self.rows_needed - rows if self.rows_needed else 0

    def to_json(self) -> dict[str, Any]:
        """As it stands in verdict.json; what is not known is null."""
        told: dict[str, Any] = {"metric": self.metric, "bound": self.bound, "outcome": self.outcome}
        told |= _ends(self.measured) if self.measured else {}
        if self.difference:
            told["other"] = self.other
            told["difference"] = {**_ends(self.difference.interval), "p_value": self.difference.p_value, "pairs": self.difference.pairs}
        if self.outcome == "undecided":
            told["rows_needed"] = self.rows_needed if math.isfinite(self.rows_needed) and self.rows_needed else None
        return told


def is_comparison(text: str) -> bool:
    """Whether a bound compares with another's measurement."""
    return COMPARISON.fullmatch(text) is not None


def parse(text: str, measurement: Measurement, where: str) -> Bound:
    """A bound such as '>= 98 %', '< 12 s', '<= 10 GB' in the unit of its metric; raises RecipeError where they do not fit."""
    found = BOUND.fullmatch(text)
    if found is None:
        raise RecipeError(f"bound {text!r} cannot be read", where=where, change="write '>= 0.98'")
    value = _amount(found["value"], found["unit"] or "", text, measurement, where)
    if measurement.unit == "share" and value > 1:
        raise RecipeError(
            f"bound {text!r}: {measurement.metric} is a share, 0…1", where=where, change=f"write '{found['comparison']} {found['value']} %'"
        )
    return Bound(text=text.strip(), comparison=found["comparison"], value=value)


def parse_comparison(text: str, measurement: Measurement, where: str) -> Comparison:
    """A comparison such as 'not worse than base by 2 %' in the unit of its metric; raises RecipeError where they do not fit."""
    found = COMPARISON.fullmatch(text)
    if found is None:
        raise RecipeError(f"bound {text!r} cannot be read", where=where, change="write 'better than baseline'")
    sign = -1.0 if found["claim"] == "not worse" else 1.0
    least, factor = 0.0, 1.0
    if found["unit"] == "%" and measurement.unit != "share":
        factor = 1 + sign * (1 if measurement.higher_is_better else -1) * float(found["value"]) / 100
    elif found["value"]:
        least = sign * _amount(found["value"], found["unit"] or "", text, measurement, where)
    claim, other = found["claim"], found["other"]
    return Comparison(text=text.strip(), claim=claim, other=other, least=least, factor=factor)  # type: ignore[arg-type]  # words of the pattern


def judge_number(measurement: Measurement, bound: Bound, level: Level) -> Judgement:
    """A metric against a number: by the interval's ends, never by the value alone."""
    metric = measurement.metric
    if not math.isfinite(measurement.value):
        return _not_finite(metric, bound.text)
    interval = measurement.interval(level)
    described = f"{metric} is {_described(measurement, interval)}"
    outcome = bound.outcome(interval)
    if outcome != "undecided":
        reason = f"{described}: shown {'to be' if outcome == 'holds' else 'not to be'} {bound.text}"
        return Judgement(metric=metric, bound=bound.text, outcome=outcome, reason=reason, measured=interval)
    needed = _rows_needed(measurement, interval, bound.value, level)
    reason = f"{described}: neither shown to be {bound.text} nor shown not to be"
    return Judgement(
        metric=metric,
        bound=bound.text,
        outcome=outcome,
        reason=f"{reason}; {_advice(needed, interval.n)}",
        findings=_too_few(metric, interval.n, needed),
        measured=interval,
        rows_needed=needed,
    )


def judge_against(tuned: Measurement, other: Measurement, comparison: Comparison, level: Level) -> Judgement:
    """A metric against another's: by the interval of the improvement, which is upwards or downwards as the metric has it."""
    if not (math.isfinite(tuned.value) and math.isfinite(other.value)):
        return _not_finite(tuned.metric, comparison.text)
    change = difference(tuned, other, level, comparison.factor)
    gain = change.interval if tuned.higher_is_better else _turned(change.interval)
    outcome = comparison.outcome(gain)
    words: dict[Outcome, str] = {
        "holds": "shown to be",
        "violated": "shown not to be",
        "undecided": "neither shown to be nor shown not to be",
    }
    part = f" from {comparison.factor:.0%} of that" if comparison.factor != 1 else ""
    reason = (
        f"{tuned.metric} is {words[outcome]} {comparison.text}: {show(tuned.value, tuned.unit)} against {show(other.value, tuned.unit)}, "
        f"difference{part} {_signed(change.interval, tuned.unit)}{_how(change)}"
    )
    needed = 0.0 if outcome != "undecided" else _rows_to_clear(gain, comparison.least, tuned.statistic, level)
    findings = _unpaired(tuned.metric, change) if change.pairs and change.unpaired else ()
    return Judgement(
        metric=tuned.metric,
        bound=comparison.text,
        outcome=outcome,
        reason=f"{reason}; {_advice(needed, gain.n)}" if needed else reason,
        findings=(*(_too_few(tuned.metric, gain.n, needed) if needed else ()), *findings),
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


def not_compared(metric: str, comparison: str, other: str) -> Judgement:
    """A comparison with one that does not have the metric: nothing is shown, so nothing is deployed."""
    advice = f"evaluate the {other} on the task of {metric}, or give evaluation.baseline a number for it"
    finding = Finding(code="not_compared", severity="warn", message=advice, evidence={"metric": metric})
    reason = f"{metric} was never compared: the {other} has no {metric}"
    return Judgement(metric=metric, bound=comparison, outcome="undecided", reason=reason, findings=(finding,))


def _amount(value: str, unit: str, text: str, measurement: Measurement, where: str) -> float:
    factors = FACTORS[measurement.unit]
    if unit not in factors:
        units = ", ".join(repr(unit) for unit in factors if unit) or "none"
        raise RecipeError(f"bound {text!r}: {measurement.metric} is in {measurement.unit}", where=where, change=f"units that fit: {units}")
    return float(value) * factors[unit]


def _not_finite(metric: str, bound: str) -> Judgement:
    message = f"{metric} is not a finite number: the model or its evaluation is broken"
    finding = Finding(code="not_finite", severity="warn", message=message, evidence={"metric": metric})
    reason = f"{metric} was not measured as a number: {bound} is not shown"
    return Judgement(metric=metric, bound=bound, outcome="undecided", reason=reason, findings=(finding,))


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


def _rows_needed(measurement: Measurement, interval: Interval, bound: float, level: Level) -> float:
    if (
        measurement.unit == "share"
        and level.look == 1
        and interval == intervals.exact(interval.value * interval.n, interval.n, level.confidence)
    ):
        return intervals.rows_to_show_share(measurement.value, bound, level.confidence)
    return _rows_to_clear(interval, bound, measurement.statistic, level)


def _rows_to_clear(interval: Interval, bound: float, statistic: str, level: Level) -> float:
    """As `rows_to_show`; an interval with an open end first needs the rows from which it has both."""
    if math.isfinite(interval.high - interval.low):
        return intervals.rows_to_show(interval, bound, level.fixed)
    if statistic in ("p50", "p95"):
        return intervals.rows_for_quantile(0.5 if statistic == "p50" else 0.95, level.confidence)
    return intervals.FEWEST_TO_RESAMPLE


def _advice(needed: float, rows: int) -> str:
    if math.isinf(needed):
        return "no number of rows would decide it, if this is the truth"
    return f"{needed - rows:,.0f} more rows, {needed:,.0f} in all, would decide it in 4 of 5 cases, if this is the truth"


def _too_few(metric: str, rows: int, needed: float) -> tuple[Finding, ...]:
    message = f"{metric} was measured on {rows:,} rows and needs about {needed:,.0f}"
    if math.isinf(needed):
        message = f"{metric} lies on its bound, where more rows do not help"
    evidence: dict[str, float | int | str] = {"metric": metric, "rows": rows, "rows_needed": needed}
    return (Finding(code="too_few_rows", severity="warn", message=message, evidence=evidence),)


def _unpaired(metric: str, change: Difference) -> tuple[Finding, ...]:
    message = f"{metric}: {change.unpaired} rows were answered by one side only and do not count in the comparison of {change.pairs} pairs"
    evidence: dict[str, float | int | str] = {"pairs": change.pairs, "unpaired": change.unpaired}
    return (Finding(code="unpaired_rows", severity="note", message=message, evidence=evidence),)


def _ends(interval: Interval) -> dict[str, float | int | None]:
    """JSON has no infinity: an open end is null."""
    finite = {name: value if math.isfinite(value) else None for name, value in (("low", interval.low), ("high", interval.high))}
    return {"value": interval.value, **finite, "n": interval.n}


def _how(change: Difference) -> str:
    if change.interval.low == change.interval.high:
        return ""
    p_value = f", p = {change.p_value:.2g}" if change.p_value is not None else ""
    return f" ({change.pairs} pairs of rows{p_value})" if change.pairs else " (not paired)"


def _described(measurement: Measurement, interval: Interval) -> str:
    """`98.0 % (96.1…99.1 %, n = 302)`; a number that stands for no sample has no interval."""
    value = show(measurement.value, measurement.unit)
    if measurement.statistic == "number":
        return value
    low = show(interval.low, measurement.unit) if math.isfinite(interval.low) else "unknown"
    high = show(interval.high, measurement.unit) if math.isfinite(interval.high) else "unknown"
    return f"{value} ({low} … {high}, n = {measurement.n:,})"


def _signed(change: Interval, unit: Unit) -> str:
    """`+15.0 points (3.1 … 29.9)` for shares, in the metric's own unit else."""
    if unit == "share":
        return f"{100 * change.value:+.1f} points ({100 * change.low:+.1f} … {100 * change.high:+.1f})"
    if change.low == change.high:
        return show(change.value, unit)
    return f"{show(change.value, unit)} ({show(change.low, unit)} … {show(change.high, unit)})"

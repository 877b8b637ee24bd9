"""One bound against one measurement: it holds, it is violated, or the rows do not tell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.core.errors import RecipeError
from luthier.core.finding import Finding
from luthier.evaluate.metrics import Measurement, Unit, show
from luthier.evaluate.report import Prediction
from luthier.recipe.proof import BOUND
from luthier.score import intervals
from luthier.score.intervals import Interval
from luthier.score.paired import paired

Outcome = Literal["holds", "violated", "undecided"]

FACTORS: dict[Unit, dict[str, float]] = {
    "share": {"": 1.0, "%": 0.01},
    "s": {"": 1.0, "s": 1.0, "ms": 1e-3},
    "bytes": {"": 1.0, "MB": 1e6, "GB": 1e9},
    "tokens/s": {"": 1.0},
    "nats": {"": 1.0},
}
"""How a bound's number becomes the metric's own unit."""


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
class Judgement:
    """What became of one bound: the outcome, a plain sentence with the numbers, and findings."""

    outcome: Outcome
    reason: str
    findings: tuple[Finding, ...] = ()


def is_comparison(text: str) -> bool:
    """Whether a bound is `better than baseline`."""
    return text.strip() == "better than baseline"


def parse(text: str, measurement: Measurement, where: str) -> Bound:
    """A bound such as '>= 98 %', '< 12 s', '<= 10 GB' in the unit of its metric; raises RecipeError where they do not fit."""
    found = BOUND.fullmatch(text)
    factors = FACTORS[measurement.unit]
    written = (found["unit"] or "") if found else ""
    if found is None or found["comparison"] is None or written not in factors:
        units = ", ".join(repr(unit) for unit in factors if unit) or "none"
        raise RecipeError(f"bound {text!r}: {measurement.metric} is in {measurement.unit}", where=where, change=f"units that fit: {units}")
    value = float(found["value"]) * factors[written]
    if measurement.unit == "share" and value > 1:
        raise RecipeError(
            f"bound {text!r}: {measurement.metric} is a share, 0…1", where=where, change=f"write '{found['comparison']} {found['value']} %'"
        )
    return Bound(text=text.strip(), comparison=found["comparison"], value=value)


def judge_number(measurement: Measurement, bound: Bound, confidence: float) -> Judgement:
    """A metric against a number: by the interval's ends, never by the value alone."""
    if not math.isfinite(measurement.value):
        broken = f"{measurement.metric} is not a finite number: the model or its evaluation is broken"
        finding = Finding(code="not_finite", severity="warn", message=broken, evidence={"metric": measurement.metric})
        return Judgement(
            outcome="undecided", reason=f"{measurement.metric} was not measured as a number: {bound.text} is not shown", findings=(finding,)
        )
    described = f"{measurement.metric} is {_described(measurement, confidence)}"
    outcome = bound.outcome(measurement.interval(confidence))
    if outcome != "undecided":
        return Judgement(outcome=outcome, reason=f"{described}: shown {'to be' if outcome == 'holds' else 'not to be'} {bound.text}")
    needed = _rows_needed(measurement, bound, confidence)
    return _too_few(f"{described}: neither shown to be {bound.text} nor shown not to be", measurement.metric, measurement.n, needed)


def judge_against(
    tuned: Measurement, baseline: Measurement, rows: tuple[Sequence[Prediction], Sequence[Prediction]], confidence: float
) -> Judgement:
    """A metric against the baseline's: it holds when the whole interval of the improvement is above 0, is violated when none of it is.

    `rows` are both sides' predictions of the task. Where the same rows were answered by both, the difference is that of the
    pairs (exact McNemar, or bootstrap); else that of two independent estimates. An improvement is upwards for shares and
    tokens/s, downwards for times, bytes and loss.
    """
    first, second, unpaired = _pair(*rows)
    sign = 1.0 if tuned.higher_is_better else -1.0
    if first:
        test = paired(first, second, confidence)
        change, how = test.interval, f"{len(first)} pairs of rows, p = {test.p_value:.2g}"
    else:
        change, how = intervals.difference(_independent(tuned, confidence), _independent(baseline, confidence)), "not paired"
    gain = change if sign > 0 else Interval(value=-change.value, low=-change.high, high=-change.low, n=change.n)
    outcome = Bound(text="", comparison=">", value=0.0).outcome(gain)
    words = {
        "holds": "better than baseline",
        "violated": "not better than baseline",
        "undecided": "not shown to be better or worse than baseline",
    }
    reason = (
        f"{tuned.metric} is {words[outcome]}: {show(tuned.value, tuned.unit)} against {show(baseline.value, tuned.unit)}, "
        f"difference {_signed(change, tuned.unit)}{f' ({how})' if change.low < change.high else ''}"
    )
    findings = _unpaired(tuned.metric, len(first), unpaired) if first and unpaired else ()
    if outcome != "undecided":
        return Judgement(outcome=outcome, reason=reason, findings=findings)
    few = _too_few(reason, tuned.metric, gain.n, _rows_to_clear(gain, 0.0, tuned, confidence))
    return Judgement(outcome=outcome, reason=few.reason, findings=(*few.findings, *findings))


def not_compared(metric: str) -> Judgement:
    """A comparison with a baseline that does not have the metric: nothing is shown, so nothing is deployed."""
    advice = f"evaluate the baseline on the task of {metric}, or give evaluation.baseline a number for it"
    finding = Finding(code="not_compared", severity="warn", message=advice, evidence={"metric": metric})
    return Judgement(outcome="undecided", reason=f"{metric} was never compared: the baseline has no {metric}", findings=(finding,))


def _independent(measurement: Measurement, confidence: float) -> Interval:
    """The interval to subtract: Wilson's for right and wrong answers, which makes the difference Newcombe's."""
    if measurement.statistic == "mean" and measurement.unit == "share" and all(value in (0, 1) for value in measurement.values):
        return intervals.wilson(measurement.value * measurement.n, measurement.n, confidence)
    return measurement.interval(confidence)


def _pair(tuned: Sequence[Prediction], baseline: Sequence[Prediction]) -> tuple[list[float], list[float], int]:
    """Scores of the rows that both answered (tuned's, baseline's), and how many rows of either side have no partner."""
    known: Mapping[str, Prediction] = {prediction.row: prediction for prediction in baseline}
    pairs = {prediction.row: (prediction.score, known[prediction.row].score) for prediction in tuned if prediction.row in known}
    first, second = [one for one, _ in pairs.values()], [other for _, other in pairs.values()]
    return first, second, len(tuned) + len(baseline) - 2 * len(pairs)


def _rows_needed(measurement: Measurement, bound: Bound, confidence: float) -> float:
    if measurement.unit == "share":
        return intervals.rows_for_share(measurement.value, bound.value, confidence)
    return _rows_to_clear(measurement.interval(confidence), bound.value, measurement, confidence)


def _rows_to_clear(interval: Interval, bound: float, measurement: Measurement, confidence: float) -> float:
    """As `rows_for`; an interval with an open end first needs the rows from which it has both."""
    if math.isfinite(interval.high - interval.low):
        return intervals.rows_for(interval, bound)
    if measurement.statistic in ("p50", "p95"):
        return intervals.rows_for_quantile(0.5 if measurement.statistic == "p50" else 0.95, confidence)
    return intervals.FEWEST_TO_RESAMPLE


def _too_few(reason: str, metric: str, rows: int, needed: float) -> Judgement:
    if math.isinf(needed):
        advice, message = (
            "no number of rows would decide it, if the value stayed",
            f"{metric} lies on its bound, where more rows do not help",
        )
    else:
        advice = f"about {needed:,.0f} rows would decide it, if the value stayed"
        message = f"{metric} was measured on {rows:,} rows and needs about {needed:,.0f}"
    evidence: dict[str, float | int | str] = {"metric": metric, "rows": rows, "rows_needed": needed}
    finding = Finding(code="too_few_rows", severity="warn", message=message, evidence=evidence)
    return Judgement(outcome="undecided", reason=f"{reason}; {advice}", findings=(finding,))


def _unpaired(metric: str, pairs: int, unpaired: int) -> tuple[Finding, ...]:
    message = f"{metric}: {unpaired} rows were answered by one side only and do not count in the comparison of {pairs} pairs"
    return (Finding(code="unpaired_rows", severity="note", message=message, evidence={"pairs": pairs, "unpaired": unpaired}),)


def _described(measurement: Measurement, confidence: float) -> str:
    """`98.0 % (96.1…99.1 %, n = 302)`; a number that stands for no sample has no interval."""
    value = show(measurement.value, measurement.unit)
    if measurement.statistic == "number":
        return value
    interval = measurement.interval(confidence)
    low = show(interval.low, measurement.unit)
    high = show(interval.high, measurement.unit) if math.isfinite(interval.high) else "unknown"
    return f"{value} ({low} … {high}, n = {measurement.n:,})"


def _signed(change: Interval, unit: Unit) -> str:
    """`+15.0 points (3.1 … 29.9)` for shares, in the metric's own unit else."""
    if unit == "share":
        return f"{100 * change.value:+.1f} points ({100 * change.low:+.1f} … {100 * change.high:+.1f})"
    if change.low == change.high:
        return show(change.value, unit)
    return f"{show(change.value, unit)} ({show(change.low, unit)} … {show(change.high, unit)})"

"""One bound against one measurement: it holds, it is violated, or the rows do not tell."""

import math
from dataclasses import dataclass

from luthier.core.errors import RecipeError
from luthier.evaluate.judgement import Judgement, Outcome, advice, not_finite, rows_to_clear, too_few
from luthier.evaluate.metrics import Measurement, Unit, show
from luthier.recipe.proof import BOUND
from luthier.score import intervals
from luthier.score.intervals import Interval
from luthier.score.sequence import Level

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


def parse(text: str, measurement: Measurement, where: str) -> Bound:
    """A bound such as '>= 98 %', '< 12 s', '<= 10 GB' in the unit of its metric; raises RecipeError where they do not fit."""
    found = BOUND.fullmatch(text)
    if found is None:
        raise RecipeError(f"bound {text!r} cannot be read", where=where, change="write '>= 0.98'")
    value = amount(found["value"], found["unit"] or "", text, measurement, where)
    if measurement.unit == "share" and value > 1:
        raise RecipeError(
            f"bound {text!r}: {measurement.metric} is a share, 0…1", where=where, change=f"write '{found['comparison']} {found['value']} %'"
        )
    return Bound(text=text.strip(), comparison=found["comparison"], value=value)


def judge_number(measurement: Measurement, bound: Bound, level: Level) -> Judgement:
    """A metric against a number: by the interval's ends, never by the value alone."""
    metric = measurement.metric
    if not math.isfinite(measurement.value):
        return not_finite(metric, bound.text)
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
        reason=f"{reason}; {advice(needed, interval.n)}",
        findings=too_few(metric, interval.n, needed),
        measured=interval,
        rows_needed=needed,
    )


def amount(value: str, unit: str, text: str, measurement: Measurement, where: str) -> float:
    """A bound's number in the metric's own unit; raises RecipeError where the unit is not one of it."""
    factors = FACTORS[measurement.unit]
    if unit not in factors:
        units = ", ".join(repr(unit) for unit in factors if unit) or "none"
        raise RecipeError(f"bound {text!r}: {measurement.metric} is in {measurement.unit}", where=where, change=f"units that fit: {units}")
    return float(value) * factors[unit]


def _rows_needed(measurement: Measurement, interval: Interval, bound: float, level: Level) -> float:
    if (
        measurement.unit == "share"
        and level.look == 1
        and interval == intervals.exact(interval.value * interval.n, interval.n, level.confidence)
    ):
        return intervals.rows_to_show_share(measurement.value, bound, level.confidence)
    return rows_to_clear(interval, bound, measurement.statistic, level)


def _described(measurement: Measurement, interval: Interval) -> str:
    """`98.0 % (96.1…99.1 %, n = 302)`; a number that stands for no sample has no interval."""
    value = show(measurement.value, measurement.unit)
    if measurement.statistic == "number":
        return value
    low = show(interval.low, measurement.unit) if math.isfinite(interval.low) else "unknown"
    high = show(interval.high, measurement.unit) if math.isfinite(interval.high) else "unknown"
    return f"{value} ({low} … {high}, n = {measurement.n:,})"

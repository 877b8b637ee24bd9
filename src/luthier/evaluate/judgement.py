"""What became of one bound, and of which rows it wants more."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.finding import Finding
from luthier.evaluate.metrics import SHARES, Statistic
from luthier.score import intervals
from luthier.score.intervals import Interval
from luthier.score.sequence import Level

Outcome = Literal["holds", "violated", "undecided"]


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


def not_finite(metric: str, bound: str) -> Judgement:
    """Of what was not measured as a number, nothing is shown."""
    message = f"{metric} is not a finite number: the model or its evaluation is broken"
    finding = Finding(code="not_finite", severity="warn", message=message, evidence={"metric": metric})
    reason = f"{metric} was not measured as a number: {bound} is not shown"
    return Judgement(metric=metric, bound=bound, outcome="undecided", reason=reason, findings=(finding,))


def unrated(metric: str, bound: str) -> Judgement:
    """Of what people have not said, nothing is shown."""
    reason = f"{metric} is not known before people have rated the answers (luthier review): {bound} is not shown"
    return Judgement(metric=metric, bound=bound, outcome="undecided", reason=reason, rows_needed=math.inf)


def rows_to_clear(interval: Interval, bound: float, statistic: Statistic, level: Level) -> float:
    """As `rows_to_show`; an interval with an open end first needs the rows from which it has both, and if it has them, no number helps."""
    if math.isfinite(interval.high - interval.low):
        return intervals.rows_to_show(interval, bound, level.fixed)
    needed = intervals.FEWEST_TO_RESAMPLE
    if statistic in SHARES:
        needed = intervals.rows_for_quantile(SHARES[statistic], level.confidence)
    return needed if needed > interval.n else math.inf


def advice(needed: float, rows: int) -> str:
    """How many rows would decide it."""
    if math.isinf(needed):
        return "no number of rows would decide it, if this is the truth"
    return f"{needed - rows:,.0f} more rows, {needed:,.0f} in all, would decide it in 4 of 5 cases, if this is the truth"


def too_few(metric: str, rows: int, needed: float) -> tuple[Finding, ...]:
    """That it takes more rows."""
    message = f"{metric} was measured on {rows:,} rows and needs about {needed:,.0f}"
    if math.isinf(needed):
        message = f"{metric} lies on its bound, where more rows do not help"
    evidence: dict[str, float | int | str] = {"metric": metric, "rows": rows, "rows_needed": needed}
    return (Finding(code="too_few_rows", severity="warn", message=message, evidence=evidence),)


def _ends(interval: Interval) -> dict[str, float | int | None]:
    """JSON has no infinity: an open end is null."""
    finite = {name: value if math.isfinite(value) else None for name, value in (("low", interval.low), ("high", interval.high))}
    return {"value": interval.value, **finite, "n": interval.n}

"""Every metric a bound can name: its unit, which way is better, and how sure its value is at any confidence."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from luthier.core.errors import RecipeError
from luthier.evaluate.report import AnswerTime, Latency, Report
from luthier.recipe.proof import BaselineMetric
from luthier.score import intervals
from luthier.score.intervals import Interval

Unit = Literal["share", "s", "tokens/s", "bytes", "nats"]
Statistic = Literal["mean", "p50", "p95", "number"]

TIMES: dict[str, Callable[[AnswerTime], float]] = {
    "latency": lambda row: row.seconds,
    "first_token": lambda row: row.first_token_seconds,
    "per_token": lambda row: (row.seconds - row.first_token_seconds) / (row.tokens - 1) if row.tokens > 1 else math.nan,
}
"""What `latency_mean`, `first_token_p50`, `per_token_p95` … are taken from: seconds of each row answered alone."""

FIXED: tuple[str, ...] = (
    *(f"{name}_{statistic}" for name in TIMES for statistic in ("mean", "p50", "p95")),  # seconds; lower is better
    "tokens_per_second",  # generated tokens per second of the tasks' batches; higher is better
    "peak_memory",  # bytes: GPU memory that PyTorch reserved, or resident memory of the process on a CPU; lower is better
    "validation_loss",  # nats per supervised token; lower is better
)
"""Metrics beside the tasks' own `TASK.SCORER`, which are shares (0…1) where higher is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One metric of one evaluation. `values` are per row; without them only the number is known (and, for a share, its n)."""

    metric: str
    unit: Unit
    statistic: Statistic
    higher_is_better: bool
    value: float
    n: int
    values: tuple[float, ...] = ()

    def interval(self, confidence: float) -> Interval:
        """How far from the value the truth may lie. A number that stands for no sample (memory, a loss) is taken as it is."""
        if self.statistic == "number":
            return Interval(value=self.value, low=self.value, high=self.value, n=self.n)
        if self.unit == "share":
            return intervals.scores(self.values, confidence) if self.values else intervals.exact(self.value * self.n, self.n, confidence)
        return estimate(self.statistic, self.values, confidence)

    def as_baseline(self, number: BaselineMetric) -> "Measurement":
        """The same metric, known only by a number; a share with its n still has an interval."""
        if self.unit == "share" and not 0 <= number.value <= 1:
            raise RecipeError(
                f"baseline {self.metric} is {number.value:g}, but a share is 0…1", where="evaluation.baseline", change="98.7 % is 0.987"
            )
        sampled = self.unit == "share" and number.n is not None
        return replace(self, value=number.value, n=number.n or 0, values=(), statistic="mean" if sampled else "number")


def estimate(statistic: Statistic, values: tuple[float, ...], confidence: float = intervals.CONFIDENCE) -> Interval:
    """Mean, median or 95th percentile of times, none of which is below 0."""
    if statistic == "mean":
        return intervals.mean(values, confidence, least=0.0)
    return intervals.quantile(values, 0.5 if statistic == "p50" else 0.95, confidence, least=0.0)


def measurements(report: Report) -> dict[str, Measurement]:
    """Every metric that this evaluation measured, by the name that bounds use."""
    scores = report.scores
    found: dict[str, Measurement] = {}
    for name, task in scores.tasks.items():
        metric = f"{name}.{task.metric}"
        values = tuple(row.score for row in report.predictions.get(name, ()))
        found[metric] = Measurement(
            metric=metric, unit="share", statistic="mean", higher_is_better=True, value=task.value, n=task.n, values=values
        )
    if scores.latency is not None:
        found |= {item.metric: item for item in _times(scores.latency)}
    if scores.tokens_per_second is not None:
        found["tokens_per_second"] = _number("tokens_per_second", "tokens/s", scores.tokens_per_second)
    if scores.peak_memory_bytes is not None:
        found["peak_memory"] = _number("peak_memory", "bytes", scores.peak_memory_bytes)
    if scores.loss is not None:
        found["validation_loss"] = replace(_number("validation_loss", "nats", scores.loss.value), n=scores.loss.n)
    return found


def seconds_of(name: str, rows: Iterable[AnswerTime]) -> tuple[float, ...]:
    """The times of one kind, a name of TIMES; a row of one token has no time per further token and is left out."""
    return tuple(seconds for row in rows if math.isfinite(seconds := TIMES[name](row)))


def find(metric: str, known: Mapping[str, Measurement], where: str) -> Measurement:
    """The measurement a bound names; raises RecipeError with the nearest name and all there are."""
    if metric in known:
        return known[metric]
    what = f"{metric!r} was not measured in this evaluation" if metric in FIXED else f"no metric is called {metric!r}"
    near = difflib.get_close_matches(metric, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near and metric not in FIXED else ""
    raise RecipeError(what, where=where, change=f"{hint}measured were {', '.join(known) or 'none'}")


def show(value: float, unit: Unit) -> str:
    """A value as people write it: 98.7 %, 820 ms, 20.1 s, 9.8 GB (10⁹ bytes)."""
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "s":
        return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    if unit == "bytes":
        return f"{value / 1e9:.3g} GB" if abs(value) >= 1e9 else f"{value / 1e6:.3g} MB"
    return f"{value:.4g} {unit}"


def _times(latency: Latency) -> Iterator[Measurement]:
    for name, times in (("latency", latency.answer), ("first_token", latency.first_token), ("per_token", latency.per_token)):
        estimates: tuple[tuple[Statistic, Interval], ...] = (("mean", times.mean), ("p50", times.p50), ("p95", times.p95))
        for statistic, known in estimates:
            if known.n:
                yield Measurement(
                    metric=f"{name}_{statistic}",
                    unit="s",
                    statistic=statistic,
                    higher_is_better=False,
                    value=known.value,
                    n=known.n,
                    values=seconds_of(name, latency.rows),
                )


def _number(metric: str, unit: Unit, value: float) -> Measurement:
    return Measurement(metric=metric, unit=unit, statistic="number", higher_is_better=unit == "tokens/s", value=value, n=1)

"""Every metric a bound can name: its unit, which way is better, and how sure its value is at any confidence."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from luthier.core.errors import RecipeError
from luthier.evaluate.report import AnswerTime, Latency, Loss, Prediction, Preference, Report, Times
from luthier.recipe.proof import JUDGED, BaselineMetric
from luthier.score import intervals, sequence
from luthier.score.answers import refuses, repeats
from luthier.score.intervals import Interval
from luthier.score.sequence import Level

Unit = Literal["share", "s", "tokens/s", "bytes", "nats"]
Statistic = Literal["mean", "p50", "p95", "number"]

SHARES: dict[Statistic, float] = {"p50": 0.5, "p95": 0.95}
"""The quantiles."""

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

FAULTS: dict[str, Callable[[Prediction], bool]] = {
    "cut": lambda row: not row.stopped,
    "endless": lambda row: not row.stopped and repeats(row.answer),
    "refused": lambda row: refuses(row.answer),
}
"""`TASK.cut`: answers that `max_new_tokens` cut; `TASK.endless`: those of them that went round in a circle, which no limit would end;
`TASK.refused`: those that begin by declining. Shares, where lower is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a metric was measured on, row by row: values (of a ratio, with their weights), which rows belong together, which row it is."""

    values: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    keys: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One metric of one evaluation. Without a sample only the number is known (and, for a share, its n)."""

    metric: str
    unit: Unit
    statistic: Statistic
    higher_is_better: bool
    value: float
    n: int
    sample: Sample = Sample()

    def interval(self, level: Level) -> Interval:
        """How far from the value the truth may lie. A number that stands for no sample (memory) is taken as it is."""
        sample = self.sample
        if self.statistic == "number":
            return Interval(value=self.value, low=self.value, high=self.value, n=self.n)
        if self.unit == "share" and not sample.values:
            return intervals.exact(self.value * self.n, self.n, level.fixed)
        if self.unit == "share":
            later = level.look > 1
            return (
                sequence.mean(sample.values, level.sequence, keys=sample.keys)
                if later
                else intervals.scores(sample.values, level.confidence, sample.keys)
            )
        if sample.weights:
            return intervals.ratio(sample.values, sample.weights, level.fixed, sample.keys)
        return estimate(self.statistic, sample.values, level.fixed)

    def as_baseline(self, number: BaselineMetric) -> "Measurement":
        """The same metric, known only by a number; a share with its n still has an interval."""
        if self.unit == "share" and not 0 <= number.value <= 1:
            raise RecipeError(
                f"baseline {self.metric} is {number.value:g}, but a share is 0…1", where="evaluation.baseline", change="98.7 % is 0.987"
            )
        sampled = self.unit == "share" and number.n is not None
        return replace(self, value=number.value, n=number.n or 0, sample=Sample(), statistic="mean" if sampled else "number")


def estimate(statistic: Statistic, values: tuple[float, ...], confidence: float = intervals.CONFIDENCE) -> Interval:
    """Mean, median or 95th percentile of times, none of which is below 0."""
    if statistic == "mean":
        return intervals.mean(values, confidence, least=0.0)
    return intervals.quantile(values, SHARES[statistic], confidence, least=0.0)


def measurements(report: Report) -> dict[str, Measurement]:
    """Every metric that this evaluation measured, by the name that bounds use; of a group `TASK.METRIC@GROUP`."""
    scores = report.scores
    found: dict[str, Measurement] = {}
    for name, task in scores.tasks.items():
        rows = report.predictions.get(name, ())
        found |= _of_rows(name, task.metric, rows)
        found[f"{name}.{task.metric}"] = replace(_share(f"{name}.{task.metric}", rows, lambda row: row.score), value=task.value, n=task.n)
        for group in task.groups:
            found |= _of_rows(name, task.metric, [row for row in rows if row.group == group], f"@{group}")
    for name, preferences in report.preferences.items():
        found[f"{name}.{JUDGED}"] = _preferred(f"{name}.{JUDGED}", preferences)
    if scores.latency is not None:
        found |= times(scores.latency)
    if scores.tokens_per_second is not None:
        found["tokens_per_second"] = _number("tokens_per_second", "tokens/s", scores.tokens_per_second)
    if scores.peak_memory_bytes is not None:
        found["peak_memory"] = _number("peak_memory", "bytes", scores.peak_memory_bytes)
    if scores.loss is not None:
        found["validation_loss"] = _loss(scores.loss)
    return found


def times(latency: Latency) -> dict[str, Measurement]:
    """Those of single answers."""
    found: dict[str, Measurement] = {}
    for name, seconds in TIMES.items():
        timed = [(row.origin, value) for row in latency.rows if math.isfinite(value := seconds(row))]
        sample = Sample(values=tuple(value for _, value in timed), rows=tuple(origin for origin, _ in timed))
        known: Times = {"latency": latency.answer, "first_token": latency.first_token, "per_token": latency.per_token}[name]
        estimates: tuple[tuple[Statistic, Interval], ...] = (("mean", known.mean), ("p50", known.p50), ("p95", known.p95))
        for statistic, at in estimates:
            if at.n:
                metric = f"{name}_{statistic}"
                found[metric] = Measurement(
                    metric=metric, unit="s", statistic=statistic, higher_is_better=False, value=at.value, n=at.n, sample=sample
                )
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


def _of_rows(task: str, metric: str, rows: Sequence[Prediction], group: str = "") -> dict[str, Measurement]:
    """The score and the faults of some of a task's answers; a scorer that is called like a fault goes before it."""
    kinds: dict[str, Callable[[Prediction], float]] = {**FAULTS, metric: lambda row: row.score}
    names = {f"{task}.{kind}{group}": (measure, kind == metric) for kind, measure in kinds.items()}
    return {name: _share(name, rows, measure, better_up=score) for name, (measure, score) in names.items()} if rows else {}


def _preferred(metric: str, rows: Sequence[Preference]) -> Measurement:
    """Of the rows that both answered; a tie counts half."""
    return _mean(metric, rows, tuple(row.value for row in rows), better_up=True)


def _share(metric: str, rows: Sequence[Prediction], measure: Callable[[Prediction], float], *, better_up: bool = True) -> Measurement:
    return _mean(metric, rows, tuple(float(measure(row)) for row in rows), better_up=better_up)


def _mean(metric: str, rows: Sequence[Prediction | Preference], values: tuple[float, ...], *, better_up: bool) -> Measurement:
    """A share, of the rows with these values."""
    return Measurement(
        metric=metric,
        unit="share",
        statistic="mean",
        higher_is_better=better_up,
        value=math.fsum(values) / len(values) if values else math.nan,
        n=len(values),
        sample=Sample(values=values, keys=tuple(row.key for row in rows), rows=tuple(row.row for row in rows)),
    )


def _loss(loss: Loss) -> Measurement:
    """Of its rows; of an evaluation that did not keep them, a number."""
    sample = Sample(
        values=tuple(row.nats for row in loss.rows),
        weights=tuple(float(row.tokens) for row in loss.rows),
        keys=tuple(row.key for row in loss.rows),
        rows=tuple(row.row for row in loss.rows),
    )
    plain = replace(_number("validation_loss", "nats", loss.value), n=loss.n)
    return replace(plain, statistic="mean", sample=sample) if loss.rows else plain


def _number(metric: str, unit: Unit, value: float) -> Measurement:
    return Measurement(metric=metric, unit=unit, statistic="number", higher_is_better=unit == "tokens/s", value=value, n=1)

"""Several runs beside each other: in what their recipes differ, what each scores, and which of the differences are more than noise."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from luthier.core.errors import LuthierError
from luthier.evaluate import metrics, report
from luthier.evaluate.comparison import difference, signed
from luthier.evaluate.judgement import Difference
from luthier.evaluate.metrics import Measurement, show
from luthier.recipe.load import values_of
from luthier.report.record import Record
from luthier.score.sequence import Level

Key = TypeVar("Key")
ABSENT = "–"
PAIRED = ("share", "nats")
"""Units of what is compared row by row. Times and memory were measured at other hours, beside other loads: they are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A key of the recipe, and what each run has there."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A run's measurement less the first run's; `real` where the difference is not 0, at 95 % for all of a comparison's together (Holm)."""

    difference: Difference
    real: bool
    better: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of every run that measured it, by the run's name."""

    name: str
    measured: Mapping[str, Measurement]
    against: Mapping[str, Against]
    """The first run, for each other that was asked the same."""

    def told(self, name: str) -> str:
        """A run's value with its interval, where it has one: `90.2 % (84.5 % … 94.4 %)`."""
        measured = self.measured[name]
        interval = measured.interval(Level())
        ends = f" ({show(interval.low, measured.unit)} … {show(interval.high, measured.unit)})" if interval.low < interval.high else ""
        return show(measured.value, measured.unit) + ends

    def told_against(self, name: str) -> str:
        """Its difference from the first run, and what that is worth: `+4.1 points (+1.0 … +7.9), better`."""
        found = self.against[name]
        worth = "noise" if not found.real else "better" if found.better else "worse"
        paired = "" if found.difference.pairs else ", other rows"
        return f"{signed(found.difference.interval, self.measured[name].unit)}, {worth}{paired}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of a run's steps and validations, and dollars by its plan's price; None where nobody knows."""

    seconds: float | None
    dollars: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Runs, the first of which the others are held against."""

    names: tuple[str, ...]
    recipes: tuple[Changed, ...]
    metrics: tuple[Metric, ...]
    costs: tuple[Cost, ...]
    unevaluated: tuple[str, ...]
    """Runs without an evaluation of the tuned model."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; what is not known is null."""
        return {
            "runs": list(self.names),
            "recipes": {each.key: list(each.values) for each in self.recipes},
            "metrics": {each.name: {name: _told(each, name) for name in each.measured} for each in self.metrics},
            "costs": [{"seconds": cost.seconds, "dollars": cost.dollars} for cost in self.costs],
            "unevaluated": list(self.unevaluated),
        }


def compare(records: Sequence[Record], level: Level | None = None) -> Compared:
    """The runs, each by its evaluation of the tuned model; the differences are those to the first one."""
    read = {record.run.name: _evaluated(record) for record in records}
    known = {name: metrics.measurements(each) for name, each in read.items() if each is not None}
    first = records[0].run.name
    names = list(dict.fromkeys(metric for measured in known.values() for metric in measured))
    found = {metric: {name: measured[metric] for name, measured in known.items() if metric in measured} for metric in names}
    pairs = {
        (metric, name): (one, by_run[first])
        for metric, by_run in found.items()
        for name, one in by_run.items()
        if name != first and first in by_run and one.unit in PAIRED and one.sample.rows
    }
    against = held_against(pairs, level or Level())
    return Compared(
        names=tuple(record.run.name for record in records),
        recipes=tuple(changed(records)),
        metrics=tuple(
            Metric(name=metric, measured=by_run, against={name: against[metric, name] for name in by_run if (metric, name) in against})
            for metric, by_run in found.items()
        ),
        costs=tuple(_cost(record) for record in records),
        unevaluated=tuple(name for name, each in read.items() if each is None),
    )


def changed(records: Sequence[Record]) -> list[Changed]:
    """The keys that are not the same in all, by name, without the runs' own; a damaged recipe has none."""
    recipes = [_values(record.recipe) for record in records]
    keys = sorted({key for recipe in recipes for key in recipe} - {"name"})
    found = [Changed(key=key, values=tuple(recipe.get(key, ABSENT) for recipe in recipes)) for key in keys]
    return [each for each in found if len(set(each.values)) > 1]


def apart(differences: Mapping[Any, Callable[[Level], Difference]], level: Level) -> set[Any]:
    """Which differences are not 0, at `level` for all of them together (Holm 1979): of m those whose interval at 1 − (1 − level)/m leaves
    0 out, then likewise of the others."""
    left, real = dict(differences), set[Any]()
    while left:
        at = level.among(len(left))
        new = {key for key, asked in left.items() if not _holds_0(asked(at))}
        if not new:
            break
        real |= new
        left = {key: asked for key, asked in left.items() if key not in new}
    return real


def held_against(pairs: Mapping[Key, tuple[Measurement, Measurement]], level: Level) -> dict[Key, Against]:
    """The first of each pair held against the second; which are apart, is asked of all together."""

    def asked(key: Key) -> Callable[[Level], Difference]:
        return lambda at: difference(*pairs[key], at)

    differences = {key: difference(one, other, level) for key, (one, other) in pairs.items()}
    paired = {key: asked(key) for key, found in differences.items() if found.pairs}
    real = apart(paired, level)
    return {
        key: Against(difference=found, real=key in real, better=(found.interval.value > 0) == pairs[key][0].higher_is_better)
        for key, found in differences.items()
    }


def _holds_0(found: Difference) -> bool:
    return found.interval.low <= 0 <= found.interval.high


def _evaluated(record: Record) -> report.Report | None:
    """The tuned model's evaluation, with the answers behind it; None where there is none that can be read."""
    return report.read(record.run.evaluation("tuned")) if "tuned" in record.evaluations else None


def _cost(record: Record) -> Cost:
    parts = [record.series.train["seconds"], record.series.validation["seconds"]]
    seconds = float(sum(np.nansum(part) for part in parts)) or None
    if seconds and record.plan and record.plan.cost and record.plan.time.mid:
        return Cost(seconds=seconds, dollars=seconds * record.plan.cost.mid / record.plan.time.mid)
    return Cost(seconds=seconds, dollars=None)


def _told(metric: Metric, name: str) -> dict[str, Any]:
    measured, against = metric.measured[name], metric.against.get(name)
    interval = measured.interval(Level())
    told: dict[str, Any] = {"value": measured.value, "low": interval.low, "high": interval.high, "n": measured.n, "unit": measured.unit}
    if against:
        between = against.difference.interval
        ends = {"value": between.value, "low": between.low, "high": between.high}
        told["difference"] = {**ends, "pairs": against.difference.pairs, "real": against.real, "better": against.better}
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in told.items()}


def _values(text: str) -> dict[str, str]:
    try:
        return values_of(text)
    except LuthierError:
        return {}

"""The curves of a run: which there are, their points for the page, and as SVG, which needs nothing to be seen."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np

from luthier.watch.series import Column, Points, Series

POINTS = 1200
"""Of a curve, at most: two a pixel."""
WIDTH, HEIGHT = 520, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 8, 8, 22
"""Room for the numbers beside a curve, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A column that is drawn, in a unit that people read."""

    title: str
    column: Column
    unit: float = 1.0
    validated: bool = False
    """Whether validations have it too."""


CHARTS = (
    Chart(title="Loss", column="loss", validated=True),
    Chart(title="Learning rate", column="learning_rate"),
    Chart(title="Gradient norm", column="grad_norm"),
    Chart(title="Tokens per second", column="tokens_per_second"),
    Chart(title="Memory, GB", column="memory_bytes", unit=1e9),
    Chart(title="Device use, %", column="device_utilization", unit=0.01),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """A chart with its curves, by what they are called: `train`, `validation`, or a run's name."""

    chart: Chart
    curves: dict[str, Points]

    def to_json(self) -> dict[str, Any]:
        """As the page's script takes it."""
        curves = [{"name": name, "x": points.x.tolist(), "y": _rounded(points)} for name, points in self.curves.items()]
        return {"title": self.chart.title, "curves": curves}


def drawn(series: Series, points: int = POINTS) -> list[Drawn]:
    """The charts of a run."""
    return [Drawn(chart=chart, curves=dict(_curves(series, chart, points))) for chart in CHARTS]


def overlaid(runs: dict[str, Series], points: int = POINTS) -> list[Drawn]:
    """Training and validation loss, and tokens a second, of several runs in one chart each."""
    loss, pace = CHARTS[0], CHARTS[3]
    train = {name: series.train.thinned("loss", points) for name, series in runs.items()}
    validation = {name: series.validation.thinned("loss", points) for name, series in runs.items()}
    paces = {name: series.train.thinned("tokens_per_second", points) for name, series in runs.items()}
    titled = (replace(loss, title="Validation loss"), replace(loss, title="Training loss"), pace)
    return [Drawn(chart=chart, curves=curves) for chart, curves in zip(titled, (validation, train, paces), strict=True)]


def svg(found: Drawn) -> str:
    """A chart as SVG; its colours are the page's, by class."""
    curves = [(escape(name), points) for name, points in found.curves.items() if len(points.x)]
    if not curves:
        return '<p class="dim">nothing is recorded yet</p>'
    x, y = (_span(np.concatenate([getattr(points, axis) for _, points in curves])) for axis in ("x", "y"))
    across = (WIDTH - LEFT - RIGHT) / (x[1] - x[0])
    down = (HEIGHT - TOP - BOTTOM) / (y[1] - y[0])
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{found.chart.title}, by step">']
    for tick in _ticks(*y):
        at = TOP + (y[1] - tick) * down
        parts.append(
            f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/><text x="{LEFT - 6}" y="{at + 4:.1f}" class="left">{tick:.6g}</text>'
        )
    for tick in _ticks(*x):
        parts.append(f'<text x="{LEFT + (tick - x[0]) * across:.1f}" y="{HEIGHT - 5}" class="below">{tick:,.6g}</text>')
    for name, points in curves:
        pairs = zip((LEFT + (points.x - x[0]) * across).tolist(), (TOP + (y[1] - points.y) * down).tolist(), strict=True)
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in pairs)
        parts.append(f'<polyline class="curve {name}" points="{path}"/>')
        if len(points.x) <= 60 and name == "validation":
            parts += [f'<circle class="{name}" cx="{pair.split(",")[0]}" cy="{pair.split(",")[1]}" r="2.5"/>' for pair in path.split()]
    return "".join([*parts, "</svg>"])


def _curves(series: Series, chart: Chart, points: int) -> Iterator[tuple[str, Points]]:
    yield "train", _scaled(series.train.thinned(chart.column, points), chart)
    if chart.validated:
        yield "validation", _scaled(series.validation.thinned(chart.column, points), chart)


def _scaled(points: Points, chart: Chart) -> Points:
    return replace(points, y=points.y / chart.unit)


def _rounded(points: Points) -> list[float]:
    """To six digits: a third of the bytes, and no difference that can be seen."""
    return [float(f"{value:.6g}") for value in points.y.tolist()]


def _span(values: Any) -> tuple[float, float]:
    """The least and the largest, apart from each other where they are one."""
    low, high = float(values.min()), float(values.max())
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> Sequence[float]:
    """Three to seven round numbers between two."""
    size = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = max((times * size for times in (1, 2, 5) if times * size <= (high - low) / 3), default=size)  # rounding may leave none
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]

"""Curves in the terminal: two by four dots a character (Unicode's braille patterns)."""

import math

import numpy as np
import numpy.typing as npt
from rich.text import Text

from luthier.watch.series import Floats, Points

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Of a character, by column from the left and row from the top."""
BLANK = 0x2800
LABEL = 9
"""Columns of the numbers beside a curve."""


def plot(curves: dict[str, Points], width: int, height: int) -> Text:
    """Curves on one scale, each in the style that it is named by, the later ones above; their range on the left, the steps below."""
    curves = {style: points for style, points in curves.items() if len(points.x)}
    if not curves:
        return Text("no step is recorded yet", style="dim")
    columns = max(8, width - LABEL - 1)
    every = [np.concatenate([getattr(points, axis) for points in curves.values()]) for axis in ("x", "y")]
    (left, right), (low, high) = ((float(values.min()), float(values.max())) for values in every)
    dots = np.zeros((height, columns), dtype=np.int64)
    styles = np.full((height, columns), "", dtype=object)
    for style, points in curves.items():
        across = _placed(points.x, left, right, 2 * columns)
        down = 4 * height - 1 - _placed(points.y, low, high, 4 * height)
        for x, y in zip(across.tolist(), down.tolist(), strict=True):
            dots[y // 4, x // 2] |= DOTS[x % 2][y % 4]
            styles[y // 4, x // 2] = style
    page = Text()
    for row in range(height):
        label = f"{high:.4g}" if row == 0 else f"{low:.4g}" if row == height - 1 else ""
        page.append(f"{label:>{LABEL}} ", style="dim")
        for bits, style in zip(dots[row].tolist(), styles[row].tolist(), strict=True):
            page.append(chr(BLANK + bits), style=style)
        page.append("\n")
    page.append(f"{'':>{LABEL}} {f'{left:,.0f}':<{columns - 12}}{f'step {right:,.0f}':>12}", style="dim")
    return page


def _placed(values: Floats, low: float, high: float, size: int) -> npt.NDArray[np.int64]:
    """Each value's place among so many from `low` to `high`; the middle where there is only one value."""
    if not math.isfinite(high - low) or high <= low:
        return np.full(len(values), size // 2, dtype=np.int64)
    return np.minimum((values - low) / (high - low) * size, size - 1).astype(np.int64)

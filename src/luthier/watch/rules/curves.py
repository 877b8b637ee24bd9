"""What rules ask of a noisy curve: how noisy, where it lies, where it jumps, and how much it will still fall.

Nothing here trusts one point, or a normal distribution's tails: places are medians, noise is a median of differences.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
NORMAL_MAD = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""
MEDIAN_COST = 1.2533
"""√(π/2): the standard error of a median over that of a mean."""
BEFORE = 32
"""Steps to which one is compared."""
FADES = np.geomspace(0.03, 3.0, 16)
"""Times after which a fitted curve has done 1 - 1/e of its fall, over the time that was seen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """A curve in consecutive blocks: where each lies in the middle, its median, and the standard error that they all have."""

    x: Floats
    y: Floats
    error: float

    def rise(self, low: int, high: int) -> float:
        """By how much one lies above another, over the lower."""
        return float((self.y[high] - self.y[low]) / abs(self.y[low]))

    def sigmas(self, low: int, high: int) -> float:
        """The same in standard errors of the difference."""
        return float((self.y[high] - self.y[low]) / (math.sqrt(2) * self.error)) if self.error else math.inf


def noise(y: Floats) -> float:
    """Standard deviation of a curve about its course, from the differences of neighbours: a slow course does not count, nor does a jump."""
    differences = np.diff(y)
    return float(NORMAL_MAD * np.median(np.abs(differences - np.median(differences))) / math.sqrt(2)) if len(differences) else 0.0


def blocks(x: Floats, y: Floats, most: int = 20, least: int = 5) -> Blocks:
    """At most so many blocks of at least so many points each."""
    num = max(1, min(most, len(y) // least))
    parts = np.array_split(np.arange(len(y)), num)
    per_block = len(y) / num
    return Blocks(
        x=np.array([x[part].mean() for part in parts]),
        y=np.array([np.median(y[part]) for part in parts]),
        error=MEDIAN_COST * noise(y) / math.sqrt(per_block),
    )


def jumps(y: Floats, sigmas: float, least: float) -> npt.NDArray[np.int64]:
    """Places of a positive curve that lie so many robust standard deviations, and by a factor `least`, above the 32 before them.

    In logarithms, in which the noise of a loss is more alike on both sides. Of neighbours the first one.
    """
    if len(y) <= BEFORE:
        return np.zeros(0, np.int64)
    logs = np.log(np.maximum(y, 1e-12))
    before = np.lib.stride_tricks.sliding_window_view(logs, BEFORE)[:-1]
    middle = np.median(before, axis=1)
    spread = NORMAL_MAD * np.median(np.abs(before - middle[:, None]), axis=1)
    found = BEFORE + np.flatnonzero(logs[BEFORE:] - middle > np.maximum(math.log(least), sigmas * spread))
    return found[np.diff(found, prepend=-BEFORE) > BEFORE // 4]


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """How much a curve will still fall: the expected fall, and the probability that it is less than was asked."""

    fall: float
    probability: float


def left(x: Floats, y: Floats, until: float, less_than: float) -> Left:
    """What a curve that falls as a + b·exp(-x/τ) falls from its last point until x = `until`, and P(that is less than `less_than`).

    Each of 16 τ has its own least squares; they are weighted by their likelihood with a and b integrated out, |XᵀX|^(-½) · RSS^(-(n-2)/2)
    (O'Hagan and Forster 2004, ch. 11), so that many curves that fit alike make a wide answer. Given τ the fall is Student's t of n - 2
    degrees.
    """
    span, freedom = x[-1] - x[0], len(x) - 2
    falls, errors, logs = [], [], []
    for tau in FADES * span:
        curve = np.stack([np.ones_like(x), np.exp(-(x - x[0]) / tau)], axis=1)
        inverse = np.linalg.pinv(curve.T @ curve)
        fitted = inverse @ curve.T @ y
        squares = max(float(((y - curve @ fitted) ** 2).sum()), 1e-18)
        scale = math.exp(-span / tau) - math.exp(-(until - x[0]) / tau)
        falls.append(fitted[1] * scale)
        errors.append(scale * math.sqrt(inverse[1, 1] * squares / freedom))
        logs.append(0.5 * math.log(max(np.linalg.det(inverse), 1e-300)) - freedom / 2 * math.log(squares))
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    below = [
        _student((less_than - fall) / error, freedom) if error else float(fall < less_than)
        for fall, error in zip(falls, errors, strict=True)
    ]
    return Left(fall=float(weights @ falls), probability=float(weights @ below))


def _student(t: float, freedom: int) -> float:
    """P(T < t) of Student's t, by the normal approximation of Wallace (1959): within 0.01 from 3 degrees of freedom on."""
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return 0.5 * (1 + math.erf(math.copysign(z, t) / math.sqrt(2)))

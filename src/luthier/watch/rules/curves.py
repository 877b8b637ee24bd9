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
LEAST = 1e-12
"""What a loss of nothing counts as."""
BEFORE = 32
"""Steps to which one is compared."""
FADES = np.geomspace(0.03, 1.0, 16)
"""Times after which a fitted curve has done 1 - 1/e of its fall, over the time that was seen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """A curve in consecutive blocks: where each lies in the middle, its median, and the standard error that they all have."""

    x: Floats
    y: Floats
    error: float

    def rise(self, low: int, high: int) -> float:
        """By how much one lies above another, over the lower."""
        return float((self.y[high] - self.y[low]) / max(abs(self.y[low]), LEAST))

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
    logs = np.log(np.maximum(y, LEAST))
    before = np.lib.stride_tricks.sliding_window_view(logs, BEFORE)[:-1]
    middle = np.median(before, axis=1)
    spread = NORMAL_MAD * np.median(np.abs(before - middle[:, None]), axis=1)
    found = BEFORE + np.flatnonzero(logs[BEFORE:] - middle > np.maximum(math.log(least), sigmas * spread))
    return found[np.diff(found, prepend=-BEFORE) > BEFORE // 4]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """How much a curve falls: what is expected, and the probability that it is less than was asked."""

    value: float
    probability: float


def fall(x: Floats, y: Floats, span: tuple[float, float], less_than: float) -> Fall:
    """How much a curve a + b·exp(-x/τ) + c·x falls between two x, which may lie beyond its points, and P(that is less than `less_than`).

    The straight part is what a second, slower fall looks like that has only begun: without it a first fast one would make the rest sure.
    Each of 16 τ has its own least squares; they are weighted by their likelihood with a, b and c integrated out, |XᵀX|^(-½) ·
    RSS^(-(n-3)/2) (O'Hagan and Forster 2004, ch. 11), so that many curves that fit alike make a wide answer. Given τ the fall is Student's
    t of n - 3 degrees.
    """
    seen, freedom = x[-1] - x[0], len(x) - 3
    falls, errors, logs = [], [], []
    for tau in FADES * seen:

        def curve(at: Floats, tau: float = tau) -> Floats:
            return np.stack([np.ones_like(at), np.exp(-(at - x[0]) / tau), (at - x[0]) / seen], axis=1)

        inverse = np.linalg.pinv(curve(x).T @ curve(x))
        fitted = inverse @ curve(x).T @ y
        squares = max(float(((y - curve(x) @ fitted) ** 2).sum()), 1e-18)
        begin, end = curve(np.array(span))
        ahead = begin - end
        falls.append(float(ahead @ fitted))
        errors.append(math.sqrt(max(0.0, float(ahead @ inverse @ ahead)) * squares / freedom))
        logs.append(0.5 * math.log(max(float(np.linalg.det(inverse)), 1e-300)) - freedom / 2 * math.log(squares))
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    below = [_student((less_than - each) / max(error, 1e-12), freedom) for each, error in zip(falls, errors, strict=True)]
    return Fall(value=float(weights @ falls), probability=float(weights @ below))


def _student(t: float, freedom: int) -> float:
    """P(T < t) of Student's t, by the normal approximation of Wallace (1959): within 0.01 from 3 degrees of freedom on."""
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return 0.5 * (1 + math.erf(math.copysign(z, t) / math.sqrt(2)))

"""A measured number with the interval that belongs to it, and how many rows a bound would need.

Intervals are two-sided at `confidence`. Everything here is distribution-free: no normal approximation decides anything
below a few hundred rows (arXiv:2503.01747).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95  # of every interval that is written to a file; a decision computes its own from the rows
FEWEST_TO_RESAMPLE = 8  # below, a bootstrap of the mean covers far too seldom
RESAMPLES = 4_999
MOST_ROWS = 10_000_000  # a bound that needs more rows than this is as good as unreachable
RANDOM_SEED = 0  # of resampling: the same rows give the same interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate from `n` rows and the interval around it. Ends may be infinite; without rows the value is NaN."""

    value: float
    low: float
    high: float
    n: int


def exact(total: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Share `total / n` of right answers, Clopper–Pearson: 31 of 31 → 88.8…100 % at 95 %.

    A total that is not whole (graded scores known by their mean only) takes the wider of the neighbouring counts.
    """
    return _share(total, n, confidence, "exact")


def wilson(total: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The same share with Wilson's score interval, used for the difference of two unpaired shares (Newcombe 1998, method 10)."""
    return _share(total, n, confidence, "wilson")


def mean(values: Sequence[float], confidence: float = CONFIDENCE, *, least: float = -math.inf, most: float = math.inf) -> Interval:
    """Mean of values that lie in least…most, by the bias-corrected accelerated bootstrap (Efron 1987).

    Where a bootstrap says nothing (fewer than 8 values, or all equal) the interval is what the sample's extremes allow: with
    the confidence asked for, at most ε of all rows lie beyond them. One value 0.5 in 0…1 gives 0.01…0.99, not 0.5…0.5.
    """
    n = len(values)
    if n == 0:
        return Interval(value=math.nan, low=least, high=most, n=0)
    value = math.fsum(values) / n
    smallest, largest = min(values), max(values)
    low = high = math.nan
    if n >= FEWEST_TO_RESAMPLE and smallest < largest:
        low, high = _bootstrap(values, confidence)
    if math.isnan(low) or math.isnan(high):
        beyond = exact(0, n, confidence).high
        low, high = smallest - beyond * (smallest - least), largest + beyond * (most - largest)
    return Interval(value=value, low=max(least, min(low, value)), high=min(most, max(high, value)), n=n)


def scores(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of scores in 0…1: exact where all of them are 0 or 1, else `mean`."""
    if all(value in (0, 1) for value in values):
        return exact(math.fsum(values), len(values), confidence)
    return mean(values, confidence, least=0.0, most=1.0)


def quantile(
    values: Sequence[float], share: float, confidence: float = CONFIDENCE, *, least: float = -math.inf, most: float = math.inf
) -> Interval:
    """The `share` quantile, its interval from order statistics: a 95th percentile has an upper end from 72 rows on (0.95⁷² < 2.5 %)."""
    import numpy as np
    from scipy.stats import quantile_test

    if not values:
        return Interval(value=math.nan, low=least, high=most, n=0)
    value = float(np.quantile(values, share))
    ends = quantile_test(values, q=value, p=share).confidence_interval(confidence)
    low, high = (float(end) for end in ends)
    low, high = least if math.isnan(low) else low, most if math.isnan(high) else high
    return Interval(value=value, low=min(low, value), high=max(high, value), n=len(values))


def difference(first: Interval, second: Interval) -> Interval:
    """`first` − `second` of two independent estimates, from their own intervals at their own confidence.

    Method of variance estimates recovery (Zou & Donner 2008); with Wilson's intervals it is Newcombe's method 10 for shares.
    An exact number is an interval without width.
    """
    value = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value=value, low=value - down, high=value + up, n=first.n)


def rows_for(interval: Interval, bound: float) -> float:
    """Rows after which the interval would clear `bound` if the value stayed: its half-width shrinks with √n. Infinite on the bound."""
    half = interval.value - interval.low if interval.value > bound else interval.high - interval.value
    if interval.value == bound or not math.isfinite(half):
        return math.inf
    return max(interval.n + 1, math.ceil(interval.n * (half / (interval.value - bound)) ** 2))


def rows_for_share(share: float, bound: float, confidence: float = CONFIDENCE) -> float:
    """Rows after which the exact interval of an observed `share` would clear `bound`: a share of 1 needs 183 to show 98 %."""
    from scipy.special import betaincinv  # the beta distribution's quantiles, without the 0.4 s that importing scipy.stats takes

    tail = (1 - confidence) / 2

    def clears(n: int) -> bool:
        right = share * n
        if share > bound:
            return right > 0 and float(betaincinv(right, n - right + 1, tail)) >= bound
        return right < n and float(betaincinv(right + 1, n - right, 1 - tail)) <= bound

    return _smallest(clears) if share != bound else math.inf


def rows_for_quantile(share: float, confidence: float = CONFIDENCE) -> int:
    """Rows from which the interval of a quantile has both ends: 72 for the 95th percentile."""
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(share, 1 - share)))


def _share(total: float, n: int, confidence: float, method: str) -> Interval:
    from scipy.stats import binomtest

    if n == 0:
        return Interval(value=math.nan, low=0.0, high=1.0, n=0)
    below, above = math.floor(total + 1e-9), math.ceil(total - 1e-9)  # 0.987 · 302 is 298.07: a count, but for rounding, is taken whole
    low = binomtest(below, n).proportion_ci(confidence, method=method).low
    high = binomtest(above, n).proportion_ci(confidence, method=method).high
    return Interval(value=total / n, low=min(float(low), total / n), high=max(float(high), total / n), n=n)


def _bootstrap(values: Sequence[float], confidence: float) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import DegenerateDataWarning, bootstrap

    with warnings.catch_warnings():
        for warning in (DegenerateDataWarning, RuntimeWarning):  # of values all but equal: the ends are NaN, which the caller deals with
            warnings.simplefilter("ignore", warning)
        result = bootstrap((values,), np.mean, n_resamples=RESAMPLES, batch=100, confidence_level=confidence, method="BCa", rng=RANDOM_SEED)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _smallest(holds: Callable[[int], bool]) -> float:
    """Smallest n up to MOST_ROWS for which a condition holds that stays true once it is; infinite where there is none."""
    high = 1
    while not holds(high):
        if high >= MOST_ROWS:
            return math.inf
        high = min(2 * high, MOST_ROWS)
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high

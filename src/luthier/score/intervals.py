"""A measured number with the interval that belongs to it, and how many rows a bound would need.

Intervals are two-sided at `confidence`. Everything here is distribution-free: no normal approximation decides anything
below a few hundred rows (arXiv:2503.01747).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.score.resample import mean_ends, totals

CONFIDENCE = 0.95  # of every interval that is written to a file; a decision computes its own from the rows
FEWEST_TO_RESAMPLE = 8  # below, a bootstrap of the mean covers far too seldom
MOST_ROWS = 10_000_000  # a bound that needs more rows than this is as good as unreachable
POWER = 0.8  # chance with which `rows_to_show` are enough


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
    if n == 0:
        return Interval(value=math.nan, low=0.0, high=1.0, n=0)
    below, above = math.floor(total + 1e-9), math.ceil(total - 1e-9)  # 0.987 · 302 is 298.07: a count, but for rounding, is taken whole
    low, high = _beta_ends(below, n, confidence)[0], _beta_ends(above, n, confidence)[1]
    return Interval(value=total / n, low=min(low, total / n), high=max(high, total / n), n=n)


def wilson(total: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The same share with Wilson's score interval, used for the difference of two unpaired shares (Newcombe 1998, method 10)."""
    from scipy.special import ndtri

    if n == 0:
        return Interval(value=math.nan, low=0.0, high=1.0, n=0)
    share, z = total / n, float(ndtri((1 + confidence) / 2))
    centre, half = (
        (share + z * z / (2 * n)) / (1 + z * z / n),
        z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n),
    )
    return Interval(value=share, low=min(share, max(0.0, centre - half)), high=max(share, min(1.0, centre + half)), n=n)


def mean(
    values: Sequence[float],
    confidence: float = CONFIDENCE,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    keys: Sequence[str] = (),
) -> Interval:
    """Mean of values that lie in least…most, by the bias-corrected accelerated bootstrap (Efron 1987) of rows, those of one key together.

    Where a bootstrap says nothing (fewer than 8 clusters, or all equal) the interval is what the sample's extremes allow: with
    the confidence asked for, at most ε of all rows lie beyond them. One value 0.5 in 0…1 gives 0.01…0.99, not 0.5…0.5.
    """
    n = len(values)
    if n == 0:
        return Interval(value=math.nan, low=least, high=most, n=0)
    value = math.fsum(values) / n
    smallest, largest = min(values), max(values)
    sums_C, sizes_C = totals(values, keys)
    low = high = math.nan
    if len(sums_C) >= FEWEST_TO_RESAMPLE and smallest < largest:
        low, high = mean_ends(sums_C, sizes_C, confidence)
    if math.isnan(low) or math.isnan(high):
        beyond = exact(0, len(sums_C), confidence).high
        low, high = smallest - beyond * (smallest - least), largest + beyond * (most - largest)
    return Interval(value=value, low=max(least, min(low, value)), high=min(most, max(high, value)), n=n)


def scores(values: Sequence[float], confidence: float = CONFIDENCE, keys: Sequence[str] = ()) -> Interval:
    """Mean of scores in 0…1: exact where all of them are 0 or 1, else `mean`.

    Where several rows have one key, the exact interval is that of as many independent rows as they are worth (Korn & Graubard 1998).
    """
    if any(value not in (0, 1) for value in values):
        return mean(values, confidence, least=0.0, most=1.0, keys=keys)
    right, n = math.fsum(values), len(values)
    worth = _worth(values, keys, confidence) if keys else n
    if worth == n:
        return exact(right, n, confidence)
    low, high = _beta_ends(right / n * worth, worth, confidence)
    return Interval(value=right / n, low=low, high=high, n=n)


def ratio(sums: Sequence[float], weights: Sequence[float], confidence: float = CONFIDENCE, keys: Sequence[str] = ()) -> Interval:
    """Σ sums / Σ weights, such as nats per token, by the same bootstrap; of fewer than 8 clusters, or all alike, the ends are not known."""
    value = math.fsum(sums) / math.fsum(weights) if sums else math.nan
    sums_C, weights_C = totals(sums, keys, weights)
    low, high = mean_ends(sums_C, weights_C, confidence) if len(sums_C) >= FEWEST_TO_RESAMPLE else (-math.inf, math.inf)
    if math.isnan(low):
        low, high = -math.inf, math.inf
    return Interval(value=value, low=min(low, value), high=max(high, value), n=len(sums))


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


def rows_to_show(interval: Interval, bound: float, confidence: float) -> float:
    """Rows after which the interval clears `bound` with 80 % probability, if the value is the truth: its half-width shrinks with √n, and
    its middle scatters. Infinite on the bound. 20 of 100 pairs won, 12 lost: 8 points need 401 pairs."""
    from scipy.special import ndtri

    half = interval.value - interval.low if interval.value > bound else interval.high - interval.value
    if interval.value == bound or not math.isfinite(half):
        return math.inf
    surely = 1 + float(ndtri(POWER) / ndtri((1 + confidence) / 2))
    return max(interval.n + 1, math.ceil(interval.n * (surely * half / (interval.value - bound)) ** 2))


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


def rows_to_show_share(share: float, bound: float, confidence: float = CONFIDENCE) -> float:
    """Rows whose exact interval clears `bound` with 80 % probability, if `share` is the truth: 98 % takes 183 of 100 %, 2,889 of 98.7 %."""
    from scipy.special import bdtr

    if share == bound:
        return math.inf
    above = share > bound

    def shown(n: int) -> bool:
        def clears(right: int) -> bool:
            low, high = _beta_ends(right, n, confidence)
            return low >= bound if above else high <= bound

        if not clears(n if above else 0):
            return False
        good, bad = (n, math.floor(bound * n)) if above else (0, math.ceil(bound * n))  # a count that clears it, and one that does not
        while abs(good - bad) > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if clears(middle) else (good, middle)
        chance = 1 - float(bdtr(good - 1, n, share)) if above else float(bdtr(good, n, share))
        return (chance if good or not above else 1.0) >= POWER

    return _smallest(shown)


def rows_for_quantile(share: float, confidence: float = CONFIDENCE) -> int:
    """Rows from which the interval of a quantile has both ends: 72 for the 95th percentile."""
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(share, 1 - share)))


def _beta_ends(right: float, n: float, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's ends, by the beta distribution's quantiles; counts need not be whole."""
    from scipy.special import betaincinv  # without the 0.4 s that importing scipy.stats takes

    tail = (1 - confidence) / 2
    low = float(betaincinv(right, n - right + 1, tail)) if right > 0 else 0.0
    return low, float(betaincinv(right + 1, n - right, 1 - tail)) if right < n else 1.0


def _worth(values: Sequence[float], keys: Sequence[str], confidence: float) -> float:
    """Independent rows that are worth these: n / design effect, and less for the clusters being few; never more than n."""
    from scipy.special import stdtrit

    sums_C, sizes_C = totals(values, keys)
    n, number, share = len(values), len(sums_C), math.fsum(values) / len(values)
    if number == n:
        return n
    if number < 2 or share in (0, 1):  # that no row differs from its cluster says nothing of how alike they are
        return number
    variance = number / (number - 1) * float(((sums_C - share * sizes_C) ** 2).sum()) / n**2
    if not variance:
        return n
    tail = (1 - confidence) / 2
    few = float(stdtrit(n - 1, tail) / stdtrit(number - 1, tail)) ** 2
    return min(n, share * (1 - share) / variance * few)


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

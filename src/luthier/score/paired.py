"""Two systems that answered the same rows: how much better the first is, and whether that can be chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from luthier.score import sequence
from luthier.score.intervals import CONFIDENCE, Interval, mean, quantile
from luthier.score.resample import quantile_ends, sign_flips, totals
from luthier.score.sequence import Level

STEPS = 50  # of bisection


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Mean of first − second over `interval.n` rows, with its interval, and the two-sided p-value of no difference."""

    interval: Interval
    p_value: float


def paired(first: Sequence[float], second: Sequence[float], level: Level | None = None, keys: Sequence[str] = ()) -> PairedDifference:
    """Difference of two systems' scores (0…1) on the same rows: exact where all are 0 or 1 and no two rows share a key, else by resampling.

    From the second look on, the interval is a confidence sequence's; the p-value stays that of one look.
    """
    at = level or Level()
    each_alone = len(set(filter(None, keys))) == sum(map(bool, keys))
    if each_alone and all(score in (0, 1) for score in (*first, *second)):
        test = mcnemar([score == 1 for score in first], [score == 1 for score in second], at.confidence)
    else:
        test = paired_bootstrap(first, second, at.confidence, keys)
    if at.look == 1:
        return test
    differences = [one - other for one, other in zip(first, second, strict=True)]
    return PairedDifference(interval=sequence.mean(differences, at.sequence, least=-1.0, most=1.0, keys=keys), p_value=test.p_value)


def mcnemar(first: Sequence[bool], second: Sequence[bool], confidence: float = CONFIDENCE) -> PairedDifference:
    """Right and wrong answers to the same rows, by the exact McNemar test: of the rows on which they differ, who is right?

    The interval is Tango's (1998) for the difference of paired shares, which holds its confidence; where the exact test finds no
    difference it is made to have 0 inside. 20 rows won, 5 lost of 100: +15 points, 5.6…24.9, p = 0.004.
    """
    from scipy.special import bdtr

    n = len(first)
    won = sum(one and not other for one, other in zip(first, second, strict=True))
    lost = sum(other and not one for one, other in zip(first, second, strict=True))
    if n == 0:
        return PairedDifference(interval=Interval(value=math.nan, low=-1.0, high=1.0, n=0), p_value=1.0)
    p_value = min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5))) if won + lost else 1.0
    interval = Interval(value=(won - lost) / n, low=-_tango(lost, won, n, confidence), high=_tango(won, lost, n, confidence), n=n)
    return PairedDifference(interval=interval if p_value < 1 - confidence else _around_0(interval), p_value=p_value)


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE, keys: Sequence[str] = ()
) -> PairedDifference:
    """Graded scores on the same rows, by clusters: bootstrap interval of the mean difference, p-value by flipping their signs.

    Where that test finds no difference, the interval is made to have 0 inside.
    """
    differences = [one - other for one, other in zip(first, second, strict=True)]
    interval = mean(differences, confidence, least=-1.0, most=1.0, keys=keys)
    p_value = sign_flips(totals(differences, keys)[0]) if differences else 1.0
    return PairedDifference(interval=interval if p_value < 1 - confidence else _around_0(interval), p_value=p_value)


def paired_times(first: Sequence[float], second: Sequence[float], share: float | None, level: Level) -> Interval:
    """Difference of two systems' times of the same rows: of means (`share` None), of medians row by row, else of quantiles.

    The median is that of the rows' own differences, with an exact interval. Means and quantiles are resampled.
    """
    import numpy as np

    differences = [one - other for one, other in zip(first, second, strict=True)]
    if share is None or not differences:
        return mean(differences, level.fixed)
    if share == 0.5:
        return quantile(differences, share, level.fixed)
    first_N, second_N = np.array(first), np.array(second)
    low, high = quantile_ends(first_N, second_N, share, level.fixed)
    value = float(np.quantile(first_N, share) - np.quantile(second_N, share))
    return Interval(value=value, low=min(low, value), high=max(high, value), n=len(differences))


def _around_0(interval: Interval) -> Interval:
    return replace(interval, low=min(interval.low, -math.ulp(0.0)), high=max(interval.high, math.ulp(0.0)))


def _tango(won: int, lost: int, n: int, confidence: float) -> float:
    """Upper end for (won − lost) / n: the largest difference whose score test does not reject it."""
    from scipy.special import ndtri

    limit = float(ndtri((1 + confidence) / 2))

    def rejected(delta: float) -> bool:
        b = -won - lost + (2 * n - won + lost) * delta
        rest = (math.sqrt(max(0.0, b * b + 8 * n * lost * delta * (1 - delta))) - b) / (4 * n)  # share lost, if delta is the truth
        scatter = n * (2 * rest + delta * (1 - delta))
        return scatter <= 0 or (n * delta - (won - lost)) / math.sqrt(scatter) > limit

    inside, outside = (won - lost) / n, 1.0
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
    return inside

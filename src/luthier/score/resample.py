"""Rows drawn again, whole clusters at a time: what a mean, a quantile, or a difference of quantiles might as well have been.

Axes: C clusters, N rows, R resamples.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

RESAMPLES = 4_999
RANDOM_SEED = 0  # the same rows give the same interval
BLOCK = 4_000_000  # drawn at once: 32 MB


def clusters(keys: Sequence[str], num_rows: int) -> "Ints":
    """Each row's cluster, numbered from 0; a row without a key is a cluster of its own."""
    import numpy as np

    if not keys:
        return np.arange(num_rows)
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(key or f"\0{row}", len(numbers)) for row, key in enumerate(keys)], np.int64)


def totals(values: Sequence[float], keys: Sequence[str], weights: Sequence[float] = ()) -> tuple["Floats", "Floats"]:
    """Of each cluster, the sum of its values and that of their weights, 1 where none are given."""
    import numpy as np

    cluster_N = clusters(keys, len(values))
    sums_C, sizes_C = (np.bincount(cluster_N, weights=each) for each in (values, weights or np.ones(len(values))))
    return np.asarray(sums_C, np.float64), np.asarray(sizes_C, np.float64)


def mean_ends(sums_C: "Floats", sizes_C: "Floats", confidence: float) -> tuple[float, float]:
    """Ends of the interval of Σ sums / Σ sizes, bias-corrected and accelerated (Efron 1987); NaN where all resamples agree."""
    import numpy as np
    from scipy.special import ndtri

    def ratio(counts_RC: "Floats") -> "Floats":
        return np.asarray((counts_RC @ sums_C) / (counts_RC @ sizes_C), np.float64)

    means_R = np.sort(_each(len(sums_C), ratio))
    value = sums_C.sum() / sizes_C.sum()
    tie = 1e-12 * max(abs(means_R[0]), abs(means_R[-1]))
    below = (np.sum(means_R < value - tie) + np.sum(means_R <= value + tie)) / (2 * RESAMPLES)
    if means_R[0] == means_R[-1] or not 0 < below < 1:
        return np.nan, np.nan
    without_C = (sums_C.sum() - sums_C) / (sizes_C.sum() - sizes_C)
    pull_C = without_C.mean() - without_C
    spread = float(np.sum(pull_C**2))
    acceleration = float(np.sum(pull_C**3)) / (6 * spread**1.5) if spread else 0.0
    bias = ndtri(below)
    return _ends(means_R, bias, acceleration, confidence)


def quantile_ends(first_N: "Floats", second_N: "Floats", share: float, confidence: float) -> tuple[float, float]:
    """Ends of the interval of the difference of two quantiles, first's − second's, of the same rows; bias-corrected."""
    import numpy as np
    from scipy.special import ndtri

    def difference(counts_RN: "Floats") -> "Floats":
        return np.asarray(_quantiles(first_N, counts_RN, share) - _quantiles(second_N, counts_RN, share), np.float64)

    found_R = np.sort(_each(len(first_N), difference))
    value = difference(np.ones((1, len(first_N))))[0]
    below = (np.sum(found_R < value) + np.sum(found_R <= value)) / (2 * RESAMPLES)
    return _ends(found_R, ndtri(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES)), 0.0, confidence)


def sign_flips(sums_C: "Floats") -> float:
    """Two-sided p-value of sums that are as likely to be of either sign: all flips where these are few, else random ones."""
    import numpy as np

    if not np.any(sums_C):
        return 1.0
    flipped_R = _signs(len(sums_C)) @ sums_C
    reached = int(np.sum(np.abs(flipped_R) >= abs(sums_C.sum()) * (1 - 1e-12)))
    return reached / len(flipped_R) if 2 ** len(sums_C) <= RESAMPLES else (reached + 1) / (RESAMPLES + 1)


def _ends(sorted_R: "Floats", bias: float, acceleration: float, confidence: float) -> tuple[float, float]:
    import numpy as np
    from scipy.special import ndtr, ndtri

    z = bias + ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.quantile(sorted_R, ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def _quantiles(values_N: "Floats", counts_RN: "Floats", share: float) -> "Floats":
    """The smallest value that at least `share` of the counted rows do not exceed."""
    import numpy as np

    order = np.argsort(values_N)
    reached_RN = np.cumsum(counts_RN[:, order], axis=1)
    places = np.argmax(reached_RN >= share * reached_RN[:, -1:] - 1e-9, axis=1)
    return np.asarray(values_N[order][places], np.float64)


def _each(number: int, statistic: "Callable[[Floats], Floats]") -> "Floats":
    """The statistic of every resample of so many clusters."""
    import numpy as np

    blocks = (_counts(number),) if number * RESAMPLES <= BLOCK else _drawn(number)
    return np.concatenate([statistic(counts) for counts in blocks])


@lru_cache(maxsize=2)
def _counts(number: int) -> "Floats":
    import numpy as np

    return np.concatenate(list(_drawn(number)))


@lru_cache(maxsize=2)
def _signs(number: int) -> "Floats":
    import numpy as np

    if 2**number <= RESAMPLES:
        return np.asarray(1 - 2 * ((np.arange(2**number)[:, None] >> np.arange(number)) & 1), np.float64)
    return np.random.default_rng(RANDOM_SEED).choice([-1.0, 1.0], (RESAMPLES, number))


def _drawn(number: int) -> "Iterator[Floats]":
    """How often each cluster is in each resample, block by block."""
    import numpy as np

    rng = np.random.default_rng(RANDOM_SEED)
    size = max(1, BLOCK // number)
    for start in range(0, RESAMPLES, size):
        rows = min(size, RESAMPLES - start)
        drawn = rng.integers(0, number, (rows, number)) + number * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number).astype(np.float64)

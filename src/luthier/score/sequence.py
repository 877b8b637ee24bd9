"""Intervals that stay valid however often one looks while rows are added: confidence sequences.

A fixed interval may be looked at once. If it is looked at again whenever there are more rows, until it shows what one hopes for, it does
so wrongly in one of twelve cases after 20 looks at 95 %. The first look at a run takes the fixed interval, at `confidence`, which errs at
the end at which a claim is made in at most (1 − confidence) / 2 of cases. All others share as much: the whole errs in at most
1 − confidence, after any number of looks. They take a confidence sequence, of which each baseline that is tried has its own, the t-th at
1/(t(t + 1)) of that; what has no sequence, or is measured anew at each look, such as times, takes a fixed interval, the k-th at
1/(k(k − 1)) of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from luthier.score.intervals import CONFIDENCE, Interval
from luthier.score.resample import totals

BETS = 256  # wagers between which the capital is divided; as narrow as the sequence can be up to some 10,000 rows
EDGE, PRECISION = 1e-9, 1e-7  # of shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How sure an interval is to be; the how manieth look it belongs to, and the how manieth baseline that is tried."""

    confidence: float = CONFIDENCE
    look: int = 1
    trial: int = 1

    @property
    def sequence(self) -> float:
        """Confidence of the sequence of this baseline, for looks from the second on."""
        return 1 - (1 - self.confidence) / 2 / (self.trial * (self.trial + 1))

    @property
    def fixed(self) -> float:
        """Confidence of a fixed interval at this look."""
        return self.confidence if self.look == 1 else 1 - (1 - self.confidence) / 2 / (self.look * (self.look - 1))

    def among(self, number: int) -> "Level":
        """The level at which one of so many claims is made (Bonferroni)."""
        return replace(self, confidence=1 - (1 - self.confidence) / number)


def mean(
    values: Sequence[float], confidence: float = CONFIDENCE, *, least: float = 0.0, most: float = 1.0, keys: Sequence[str] = ()
) -> Interval:
    """Mean of values in least…most, at every number of rows at once.

    Against each mean m one bets on the next value being higher or lower; where m is the truth the capital exceeds 1/(1 − confidence) in at
    most 1 − confidence of cases, ever (Ville), so that the means against which it is less are the interval (Waudby-Smith & Ramdas 2024).
    The capital is divided between constant bets by Beta(½, ½), Cover's universal portfolio (Orabona & Jun 2023), whence the order of rows
    does not matter, and right or wrong answers get the Beta mixture of Robbins (1970): 183 of 183 right show 96.6 %, not 98.0.

    Rows of one key are one bet, on their own mean: each key counts once, or a single one of ten rows would make all other bets a tenth.
    """
    import numpy as np

    n = len(values)
    if not n:
        return Interval(value=math.nan, low=least, high=most, n=0)
    sums_C, sizes_C = totals([(value - least) / (most - least) for value in values], keys)
    share_U, counts = np.unique(sums_C / sizes_C, return_counts=True)
    log_limit = -math.log(1 - confidence)
    bets_K = (1 - np.cos((2 * np.arange(BETS) + 1) * np.pi / (2 * BETS))) / 2  # nodes of Beta(½, ½), each with the same capital

    def excess(m: float) -> float:
        """Logarithm of the capital against this mean, less that of what it may be."""
        payoff_KU = bets_K[:, None] * (share_U / m) + (1 - bets_K[:, None]) * ((1 - share_U) / (1 - m))
        capital_K = np.log(payoff_KU) @ counts
        top = capital_K.max()
        return float(top) + math.log(np.exp(capital_K - top).mean()) - log_limit

    centre = min(max(float((share_U @ counts) / counts.sum()), EDGE), 1 - EDGE)
    low = 0.0 if excess(EDGE) < 0 else _crossing(excess, EDGE, centre)
    high = 1.0 if excess(1 - EDGE) < 0 else _crossing(excess, centre, 1 - EDGE)
    value, span = math.fsum(values) / n, most - least
    return Interval(value=value, low=min(value, least + span * low), high=max(value, least + span * high), n=n)


def _crossing(excess: Callable[[float], float], below: float, above: float) -> float:
    """Where the capital reaches its limit between two means, of which the data bear one; those they bear are an interval."""
    from scipy.optimize import brentq

    return float(brentq(excess, below, above, xtol=PRECISION))

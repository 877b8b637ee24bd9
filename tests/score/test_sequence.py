"""Confidence sequences: however often one looks, the truth stays inside."""

import math
import random

import pytest

from luthier.score import intervals, sequence
from luthier.score.paired import paired
from luthier.score.sequence import Level


def test_a_sequence_is_wider_than_an_interval_that_is_looked_at_once() -> None:
    right = [1.0] * 90 + [0.0] * 10
    ever, once = sequence.mean(right), intervals.exact(90, 100)
    assert ever.low < once.low < 0.9 < once.high < ever.high
    assert sequence.mean([1.0] * 183).low == pytest.approx(0.9668, abs=1e-4)


def test_the_order_of_rows_does_not_matter() -> None:
    draw = random.Random(1)
    values = [draw.random() for _ in range(60)]
    forth, back = sequence.mean(values), sequence.mean(values[::-1])
    assert (forth.low, forth.high) == pytest.approx((back.low, back.high))


def test_right_and_wrong_get_the_beta_mixture() -> None:
    """The capital against a share m is B(k + ½, n − k + ½) / B(½, ½) / m^k (1 − m)^(n − k): it reaches 20 at the ends."""
    from scipy.special import betaln

    k, n = 37, 50
    found = sequence.mean([1.0] * k + [0.0] * (n - k))
    for m in (found.low, found.high):
        log_capital = betaln(k + 0.5, n - k + 0.5) - betaln(0.5, 0.5) - k * math.log(m) - (n - k) * math.log(1 - m)
        assert math.exp(log_capital) == pytest.approx(20, rel=1e-3)


def test_rows_of_one_key_are_one_bet() -> None:
    right = [1.0] * 80 + [0.0] * 20
    alone, together = sequence.mean(right), sequence.mean(right, keys=[str(row // 10) for row in range(100)])
    assert together.low < alone.low and together.high > alone.high and together.value == alone.value
    one_large = sequence.mean([0.0] * 110, keys=[str(max(0, row - 9)) for row in range(110)])  # ten rows of one key, a hundred alone
    assert one_large.high == pytest.approx(sequence.mean([0.0] * 101).high)


def test_a_sequence_of_few_or_equal_values_says_how_little_they_say() -> None:
    assert (sequence.mean([]).low, sequence.mean([]).high) == (0, 1)
    one = sequence.mean([1.0])
    assert one.high == 1 and one.low < 0.03
    same = sequence.mean([0.5] * 3, least=-1, most=1)
    assert same.low < 0.5 < same.high


def test_the_first_look_is_at_a_fixed_interval_and_all_others_share_as_much() -> None:
    assert Level(confidence=0.95).fixed == 0.95
    later = sum(1 - Level(confidence=0.95, look=look).fixed for look in range(2, 10_000))
    assert later == pytest.approx(0.025, abs=1e-5)
    trials = sum(1 - Level(confidence=0.95, look=2, trial=trial).sequence for trial in range(1, 10_000))
    assert trials == pytest.approx(0.025, abs=1e-5)
    assert Level(confidence=0.9).among(2).confidence == pytest.approx(0.95)


def test_graded_scores_and_differences_have_sequences_too() -> None:
    draw = random.Random(2)
    base = [draw.random() for _ in range(300)]
    tuned = [min(1.0, score + 0.2 * draw.random()) for score in base]
    once, later = paired(tuned, base), paired(tuned, base, Level(look=2))
    assert later.interval.low < once.interval.low and later.interval.low > 0 and later.p_value == once.p_value

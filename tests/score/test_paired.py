"""Paired comparisons: exact for right and wrong, and never surer than the test behind them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from luthier.score.paired import mcnemar, paired, paired_bootstrap, paired_times
from luthier.score.sequence import Level

ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80)


def sides(won: int, lost: int, same: int) -> tuple[list[bool], list[bool]]:
    return [True] * won + [False] * lost + [True] * same, [False] * won + [True] * lost + [True] * same


def test_mcnemar_looks_at_the_rows_on_which_the_two_differ() -> None:
    test = mcnemar(*sides(won=20, lost=5, same=75))
    assert test.interval.value == pytest.approx(0.15)
    assert test.p_value == pytest.approx(binomtest(20, 25).pvalue) == pytest.approx(0.0041, abs=1e-4)
    assert (test.interval.low, test.interval.high) == pytest.approx((0.056, 0.249), abs=1e-3)
    assert test.interval.n == 100


def test_five_wins_in_a_row_are_not_enough_and_six_are() -> None:
    assert mcnemar(*sides(won=5, lost=0, same=0)).interval.low < 0  # p = 0.0625
    assert mcnemar(*sides(won=6, lost=0, same=0)).interval.low > 0  # p = 0.031


def test_two_systems_that_never_differed_may_still_differ_on_the_next_rows() -> None:
    test = mcnemar(*sides(won=0, lost=0, same=31))
    assert test.p_value == 1 and test.interval.low == -test.interval.high
    assert test.interval.high == pytest.approx(0.110, abs=1e-3)


@settings(deadline=None)
@given(ANSWERS)
def test_the_interval_excludes_no_difference_exactly_where_p_is_small(answers: list[tuple[bool, bool]]) -> None:
    first, second = [one for one, _ in answers], [other for _, other in answers]
    test, turned = mcnemar(first, second), mcnemar(second, first)
    assert -1 <= test.interval.low <= test.interval.value <= test.interval.high <= 1
    assert (test.interval.low > 0 or test.interval.high < 0) == (test.p_value < 0.05)
    assert (turned.interval.low, turned.interval.high) == pytest.approx((-test.interval.high, -test.interval.low))


def test_the_interval_is_tangos_unless_the_exact_test_finds_nothing() -> None:
    """Airway hyper-responsiveness before and after transplantation (Bentur 2009; Fagerland, Lydersen & Laake 2014): −0.517 … −0.026."""
    test = mcnemar(*sides(won=1, lost=7, same=13))
    assert test.interval.low == pytest.approx(-0.517, abs=5e-4)
    assert test.p_value == pytest.approx(0.0703, abs=1e-4) and 0 < test.interval.high < 1e-9
    surer = mcnemar(*sides(won=1, lost=7, same=13), 0.9)
    assert surer.interval.high < -0.026


def test_rows_of_one_key_count_as_far_as_they_differ() -> None:
    first, second = [1.0] * 60 + [0.0] * 30, [0.0] * 30 + [1.0] * 30 + [0.0] * 30  # 30 won, none lost
    alone = paired(first, second, keys=[str(row) for row in range(90)])
    assert alone == mcnemar([score == 1 for score in first], [score == 1 for score in second])
    together = paired(first, second, keys=[str(row // 10) for row in range(90)])  # nine sources of ten rows each, three of which were won
    assert together.p_value == 0.25 and together.interval.low < 0 < 0.2 < alone.interval.low


def test_times_are_compared_row_by_row() -> None:
    draw = random.Random(5)
    slow = [draw.lognormvariate(2, 1) for _ in range(16)]
    quick = [seconds - 0.2 - 0.1 * draw.random() for seconds in slow]
    for share in (None, 0.5):
        change = paired_times(quick, slow, share, Level())
        assert -0.31 < change.low <= change.value <= change.high < -0.19 and change.n == 16
    tail = paired_times(quick, slow, 0.95, Level())
    assert tail.low < 0 and tail.n == 16


def test_graded_scores_are_compared_by_resampling() -> None:
    draw = random.Random(3)
    base = [draw.random() * 0.5 for _ in range(40)]
    tuned = [score + 0.1 + 0.1 * draw.random() for score in base]
    better = paired(tuned, base)
    assert better == paired_bootstrap(tuned, base)
    assert better.interval.low > 0.1 and better.interval.high < 0.2 and better.p_value < 0.001
    assert paired(base, base).p_value == 1


def test_right_and_wrong_take_the_exact_test() -> None:
    assert paired([1.0, 0.0, 1.0], [0.0, 0.0, 1.0]) == mcnemar([True, False, True], [False, False, True])

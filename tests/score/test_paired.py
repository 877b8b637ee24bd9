"""Paired comparisons: exact for right and wrong, and never surer than the test behind them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from luthier.score.paired import mcnemar, paired, paired_bootstrap

ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80)


def sides(won: int, lost: int, same: int) -> tuple[list[bool], list[bool]]:
    return [True] * won + [False] * lost + [True] * same, [False] * won + [True] * lost + [True] * same


def test_mcnemar_looks_at_the_rows_on_which_the_two_differ() -> None:
    test = mcnemar(*sides(won=20, lost=5, same=75))
    assert test.interval.value == pytest.approx(0.15)
    assert test.p_value == binomtest(20, 25).pvalue == pytest.approx(0.0041, abs=1e-4)
    assert (test.interval.low, test.interval.high) == pytest.approx((0.031, 0.299), abs=1e-3)
    assert test.interval.n == 100


def test_five_wins_in_a_row_are_not_enough_and_six_are() -> None:
    assert mcnemar(*sides(won=5, lost=0, same=0)).interval.low < 0  # p = 0.0625
    assert mcnemar(*sides(won=6, lost=0, same=0)).interval.low > 0  # p = 0.031


def test_two_systems_that_never_differed_may_still_differ_on_the_next_rows() -> None:
    test = mcnemar(*sides(won=0, lost=0, same=31))
    assert test.p_value == 1 and test.interval.low == -test.interval.high
    assert test.interval.high == pytest.approx(0.112, abs=1e-3)


@settings(deadline=None)
@given(ANSWERS)
def test_the_interval_excludes_no_difference_exactly_where_p_is_small(answers: list[tuple[bool, bool]]) -> None:
    first, second = [one for one, _ in answers], [other for _, other in answers]
    test, turned = mcnemar(first, second), mcnemar(second, first)
    assert -1 <= test.interval.low <= test.interval.value <= test.interval.high <= 1
    assert (test.interval.low > 0 or test.interval.high < 0) == (test.p_value < 0.05)
    assert (turned.interval.low, turned.interval.high) == pytest.approx((-test.interval.high, -test.interval.low))


def test_the_interval_of_a_paired_difference_covers_it() -> None:
    draw = random.Random(2)

    def covers() -> bool:
        rows = [draw.choices([(True, False), (False, True), (True, True)], weights=[15, 5, 80])[0] for _ in range(100)]
        interval = mcnemar([one for one, _ in rows], [other for _, other in rows]).interval
        return interval.low <= 0.10 <= interval.high

    assert sum(covers() for _ in range(300)) / 300 >= 0.95


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

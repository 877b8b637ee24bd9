"""Intervals: the published worked examples, what every interval must obey, and how often it is right."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from luthier.score import intervals
from luthier.score.intervals import Interval

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def test_31_of_31_is_not_100_percent() -> None:
    assert intervals.exact(31, 31).low == pytest.approx(0.8878, abs=1e-4)  # seed 004's test split
    assert intervals.exact(30, 31).low == pytest.approx(0.8330, abs=1e-4)
    assert intervals.exact(30, 31).high == pytest.approx(0.9992, abs=1e-4)


def test_wilson_gives_newcombes_first_example() -> None:
    interval = intervals.wilson(81, 263)  # Newcombe 1998, table I
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_the_difference_of_two_shares_is_newcombes() -> None:
    change = intervals.difference(intervals.wilson(56, 70), intervals.wilson(48, 80))  # Newcombe 1998, method 10, example a
    assert (change.value, change.low, change.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_an_exact_number_adds_no_width_to_a_difference() -> None:
    number = Interval(value=20.1, low=20.1, high=20.1, n=1)
    change = intervals.difference(Interval(value=10, low=9, high=12, n=16), number)
    assert (change.value, change.low, change.high) == pytest.approx((-10.1, -11.1, -8.1))


@settings(deadline=None)
@given(st.integers(1, 2_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.55, 0.999))
def test_shares_lie_in_their_intervals_and_more_rows_or_less_confidence_narrow_them(count: tuple[int, int], confidence: float) -> None:
    right, n = count
    for method in (intervals.exact, intervals.wilson):
        interval = method(right, n, confidence)
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        more = method(4 * right, 4 * n, confidence)
        surer = method(right, n, confidence + (1 - confidence) / 2)
        assert more.high - more.low < interval.high - interval.low < surer.high - surer.low
        if right < n:
            better = method(right + 1, n, confidence)
            assert better.low > interval.low and better.high > interval.high


@settings(max_examples=30, deadline=None)
@given(SHARES)
def test_a_mean_lies_in_its_interval_and_the_interval_in_what_is_possible(values: list[float]) -> None:
    interval = intervals.mean(values, least=0, most=1)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval == intervals.mean(values, least=0, most=1)  # resampling has a fixed seed


@settings(deadline=None)
@given(SHARES, st.sampled_from([0.5, 0.95]))
def test_a_quantile_lies_in_its_interval(values: list[float], share: float) -> None:
    interval = intervals.quantile(values, share, least=0, most=1)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_scores_of_right_and_wrong_are_exact() -> None:
    assert intervals.scores([1.0] * 30 + [0.0]) == intervals.exact(30, 31)


def test_no_rows_and_one_row_say_how_little_they_say() -> None:
    for nothing in (intervals.exact(0, 0), intervals.mean([], least=0, most=1), intervals.quantile([], 0.5, least=0, most=1)):
        assert math.isnan(nothing.value) and (nothing.low, nothing.high, nothing.n) == (0, 1, 0)
    one = intervals.mean([0.5], least=0, most=1)
    assert one.low < 0.02 and one.high > 0.98
    assert intervals.mean([3.0], least=0).high == math.inf
    assert intervals.exact(1, 1).low == pytest.approx(0.025)


def test_equal_values_are_not_certainty() -> None:
    same = intervals.mean([0.7] * 20, least=0, most=1)
    assert same.low < 0.6 and same.high > 0.74


def test_a_95th_percentile_has_an_upper_end_from_72_rows_on() -> None:
    assert intervals.rows_for_quantile(0.95) == 72
    assert intervals.quantile([float(row) for row in range(71)], 0.95).high == math.inf
    assert intervals.quantile([float(row) for row in range(72)], 0.95).high == 71


def test_183_perfect_rows_show_98_percent() -> None:
    assert intervals.rows_for_share(1.0, 0.98) == 183
    assert intervals.exact(183, 183).low >= 0.98 > intervals.exact(182, 182).low
    assert intervals.rows_for_share(0.98, 0.98) == math.inf


@pytest.mark.parametrize(("right", "of", "bound"), [(99, 100, 0.98), (9, 10, 0.98), (1, 2, 0.4), (1, 50, 0.05)])
def test_rows_for_a_share_are_the_fewest_that_clear_the_bound(right: int, of: int, bound: float) -> None:
    def cleared(times: int) -> bool:
        interval = intervals.exact(right * times, of * times)
        return interval.low >= bound or interval.high <= bound

    needed = int(intervals.rows_for_share(right / of, bound)) / of
    assert cleared(math.ceil(needed)) and not any(cleared(times) for times in range(1, math.ceil(needed)))


def test_rows_that_show_a_mean_shrink_its_half_width_by_the_root_of_n_and_leave_room_for_chance() -> None:
    assert intervals.rows_to_show(Interval(value=10, low=8, high=13, n=16), 12, 0.95) == 74  # 3 wide, 2 away: 16 · (1.5 · 2.8 / 1.96)²
    assert intervals.rows_to_show(Interval(value=12, low=8, high=13, n=16), 12, 0.95) == math.inf


@pytest.mark.parametrize(("share", "bound"), [(0.9, 0.8), (0.987, 0.98), (0.05, 0.1)])
def test_rows_that_show_a_share_do_so_in_four_of_five_cases(share: float, bound: float) -> None:
    n = int(intervals.rows_to_show_share(share, bound))
    drawn = np.random.default_rng(0).binomial(n, share, 1_000)
    shown = [intervals.exact(right, n).low >= bound if share > bound else intervals.exact(right, n).high <= bound for right in drawn]
    assert 0.74 <= np.mean(shown) <= 0.88
    assert intervals.rows_to_show_share(1.0, 0.98) == 183


def test_rows_of_one_key_are_worth_less_than_as_many_others() -> None:
    right = [1.0] * 80 + [0.0] * 20
    alone, together = (
        intervals.scores(right),
        intervals.scores(right, keys=[str(row // 10) for row in range(100)]),
    )  # ten sources, all or nothing
    assert together.low < 0.5 < 0.7 < alone.low and (alone.value, alone.n) == (together.value, together.n) == (0.8, 100)
    assert intervals.scores(right, keys=[str(row) for row in range(100)]) == alone
    mixed = intervals.scores(right, keys=[str(row % 10) for row in range(100)])  # each source has its eight of ten
    assert (mixed.low, mixed.high) == (alone.low, alone.high)  # never narrower
    perfect = intervals.scores([1.0] * 100, keys=[str(row // 10) for row in range(100)])
    assert perfect.low == pytest.approx(intervals.exact(10, 10).low)


def test_exact_ends_are_scipys() -> None:
    found, known = intervals.exact(81, 263), binomtest(81, 263).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((known.low, known.high))


def covered(truth: float, sample: list[float], least: float, most: float) -> bool:
    interval = intervals.mean(sample, least=least, most=most)
    return interval.low <= truth <= interval.high


def test_intervals_cover_about_as_often_as_they_say() -> None:
    draw = random.Random(1)
    shares = [intervals.exact(sum(draw.random() < 0.9 for _ in range(40)), 40) for _ in range(500)]
    assert sum(share.low <= 0.9 <= share.high for share in shares) / 500 >= 0.95
    latencies = [covered(math.exp(0.125), [draw.lognormvariate(0, 0.5) for _ in range(16)], 0, math.inf) for _ in range(200)]
    assert 0.86 <= sum(latencies) / 200 <= 0.98  # 16 skewed times: a bootstrap of the mean covers about 91 %
    few = [covered(0.5, [draw.random() for _ in range(4)], 0, 1) for _ in range(200)]
    assert sum(few) / 200 >= 0.95

"""How often intervals are right, and how often a model that is no better is deployed: by simulation, 2,000 draws each."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from luthier.score import intervals, sequence
from luthier.score.intervals import Interval
from luthier.score.paired import mcnemar, paired, paired_times
from luthier.score.sequence import Level

DRAWS = 2_000
Bools = npt.NDArray[np.bool_]


def coverage(truth: float, found: list[Interval]) -> float:
    return sum(interval.low <= truth <= interval.high for interval in found) / len(found)


def sides(rng: np.random.Generator, won: float, lost: float, n: int) -> tuple[Bools, Bools]:
    """Right and wrong answers of two systems to the same rows: the shares that the first wins and loses, the rest half right of both."""
    lot = rng.random(n)
    both = rng.random(n) < 0.5
    first = np.where(lot < won, True, np.where(lot < won + lost, False, both))
    second = np.where(lot < won, False, np.where(lot < won + lost, True, both))
    return first, second


@pytest.mark.parametrize(("share", "n"), [(0.5, 302), (0.7, 507), (0.9, 302), (0.98, 1_000)])
def test_exact_intervals_of_a_share_cover_it_as_often_as_they_say_or_a_little_more(share: float, n: int) -> None:
    drawn = np.random.default_rng(1).binomial(n, share, DRAWS)
    assert 0.945 <= coverage(share, [intervals.exact(int(right), n) for right in drawn]) <= 0.98


@pytest.mark.parametrize("n", [50, 200])
def test_intervals_of_graded_scores_cover_their_mean(n: int) -> None:
    rng = np.random.default_rng(2)
    assert 0.93 <= coverage(0.8, [intervals.scores(rng.beta(4, 1, n).tolist()) for _ in range(DRAWS)]) <= 0.97


def test_intervals_of_shares_that_hang_together_cover_them() -> None:
    """60 sources of 1 … 6 rows, each with its own difficulty; the plain exact interval is too narrow."""
    rng = np.random.default_rng(3)
    sizes = np.tile([1, 2, 2, 3, 4, 6], 10)
    keys = [str(source) for source, size in enumerate(sizes) for _ in range(size)]

    def answers() -> list[float]:
        return [float(rng.random() < ease) for ease in np.repeat(rng.beta(1.4, 0.6, len(sizes)), sizes)]

    rows = [answers() for _ in range(DRAWS)]
    assert 0.93 <= coverage(0.7, [intervals.scores(each, keys=keys) for each in rows]) <= 0.97
    assert coverage(0.7, [intervals.scores(each) for each in rows]) < 0.9


@pytest.mark.parametrize(("won", "lost", "n"), [(0.1, 0.1, 302), (0.15, 0.05, 100), (0.2, 0.08, 302), (0.03, 0.01, 507)])
def test_intervals_of_paired_right_and_wrong_cover_the_difference(won: float, lost: float, n: int) -> None:
    rng = np.random.default_rng(4)
    found = [mcnemar(*(side.tolist() for side in sides(rng, won, lost, n))).interval for _ in range(DRAWS)]
    assert 0.93 <= coverage(won - lost, found) <= 0.97


@pytest.mark.parametrize("num_clusters", [100, 60])
def test_intervals_of_paired_scores_cover_the_difference(num_clusters: int) -> None:
    """120 rows, alone or two to a source, whose differences are partly the source's."""
    rng = np.random.default_rng(5)
    size = 120 // num_clusters
    keys = [str(source) for source in range(num_clusters) for _ in range(size)] if size > 1 else []

    def interval() -> Interval:
        base = rng.beta(2, 2, num_clusters * size) * 0.8
        gain = np.repeat(rng.uniform(-0.1, 0.2, num_clusters), size) + rng.uniform(-0.05, 0.05, num_clusters * size)
        return paired((base + gain).tolist(), base.tolist(), keys=keys).interval

    assert 0.93 <= coverage(0.05, [interval() for _ in range(DRAWS)]) <= 0.97


@pytest.mark.parametrize(("share", "truth"), [(None, 0.3), (0.5, 0.3)])
def test_intervals_of_paired_times_cover_the_difference(share: float | None, truth: float) -> None:
    rng = np.random.default_rng(6)

    def interval() -> Interval:
        slow = rng.lognormal(1, 0.5, 64)
        return paired_times((slow + 0.3 + rng.normal(0, 0.1, 64)).tolist(), slow.tolist(), share, Level())

    assert 0.93 <= coverage(truth, [interval() for _ in range(DRAWS)]) <= 0.97


def test_intervals_of_losses_cover_nats_per_token() -> None:
    rng = np.random.default_rng(7)

    def interval() -> Interval:
        tokens = rng.integers(2, 60, 120)
        return intervals.ratio((tokens * rng.gamma(4, 0.25, 120)).tolist(), tokens.astype(float).tolist())

    assert 0.93 <= coverage(1.0, [interval() for _ in range(DRAWS)]) <= 0.97


def better_at(answers: tuple[Bools, Bools], looks: int, rows: int, *, sequential: bool = True) -> bool:
    """Whether the first is shown better at one of so many looks, with so many more rows each."""
    first, second = (side.astype(float).tolist() for side in answers)
    return any(
        paired(first[: rows * look], second[: rows * look], Level(look=look if sequential else 1)).interval.low > 0
        for look in range(1, looks + 1)
    )


def false_deploys(draws: int, looks: int, *, sequential: bool = True) -> float:
    rng = np.random.default_rng(8)
    return sum(better_at(sides(rng, 0.1, 0.1, 25 * looks), looks, 25, sequential=sequential) for _ in range(draws)) / draws


def test_who_looks_once_is_wrong_in_one_case_of_forty() -> None:
    assert false_deploys(DRAWS, looks=1) <= 0.03


def test_who_looks_twenty_times_at_fixed_intervals_is_wrong_far_too_often() -> None:
    assert false_deploys(300, looks=20, sequential=False) > 0.06


@pytest.mark.slow
def test_who_looks_twenty_times_is_not_wrong_more_often_than_promised() -> None:
    assert false_deploys(DRAWS, looks=20) <= 0.05


def test_who_looks_twenty_times_is_wrong_seldom() -> None:
    assert false_deploys(200, looks=20) <= 0.05


def test_a_share_is_not_shown_above_its_bound_however_often_one_looks() -> None:
    rng = np.random.default_rng(9)

    def shown() -> bool:
        right = rng.random(400) < 0.9
        return any(
            (intervals.scores(right[:20].tolist()) if look == 1 else sequence.mean(right[: 20 * look].tolist(), Level().sequence)).low
            >= 0.9
            for look in range(1, 21)
        )

    assert sum(shown() for _ in range(150)) / 150 <= 0.05


def test_what_is_better_is_shown_in_time_although_one_looks_often() -> None:
    rng = np.random.default_rng(10)
    shown = [better_at(sides(rng, 0.2, 0.1, 1_000), looks=20, rows=50) for _ in range(100)]
    assert np.mean(shown) > 0.9
    assert math.isclose(Level(look=20).fixed, 1 - 0.025 / 380)

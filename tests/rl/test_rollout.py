"""Advantages: how much better than its group an answer was, in the group's spread."""

import pytest

from luthier.rl.rewards import Rewarded
from luthier.rl.rollout import Episode, compared


def advantages(*rewards: tuple[int, float | None]) -> list[float | None]:
    """Of answers to prompts by their numbers."""
    episodes = [Episode(prompt=prompt, turns=(), answers=(), rewarded=Rewarded(total=total, parts={})) for prompt, total in rewards]
    return [episode.advantage for episode in compared(episodes)]


def test_an_advantage_is_the_distance_from_the_group_s_mean_in_its_spread() -> None:
    """1, 0, 0, 1: the mean 0.5, the spread with n - 1 √(1/3) = 0.57735; 0.5 / (0.57735 + 1e-4) = 0.86588. Another group changes nothing."""
    found = advantages((7, 1.0), (7, 0.0), (8, 9.0), (7, 0.0), (7, 1.0), (8, 5.0))
    own = [found[place] for place in (0, 1, 3, 4)]
    assert own == pytest.approx([0.86588, -0.86588, -0.86588, 0.86588], abs=1e-5)
    assert found[2] == pytest.approx(-found[5]) and found[2] > 0


def test_a_group_that_is_alike_or_of_one_tells_nothing_and_an_answer_without_a_reward_is_compared_with_nobody() -> None:
    assert advantages((1, 2.0), (1, 2.0), (2, 3.0), (2, None)) == [None] * 4
    assert advantages((1, 1.0), (1, None), (1, 0.0)) == [pytest.approx(0.7070, abs=1e-4), None, pytest.approx(-0.7070, abs=1e-4)]

"""Episodes: an environment replies until it is over, and one that fails fails alone, or with those that lived beside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luthier.core.errors import RecipeError
from luthier.demo.guessing import Guessing
from luthier.recipe.rl import Rl
from luthier.rl.environment import Environment
from luthier.rl.rewards import Answered, Rewarded, Rewarding


@contextmanager
def echoing(seconds: float = 10.0) -> Iterator[Rewarding]:
    with Rewarding(Rl(rewards={"environment": 1.0}, environment="mine:Echo"), seconds=seconds) as rewarding:
        yield rewarding


def asked(text: str, reference: str = "0") -> tuple[list[dict[str, str]], str]:
    return [{"role": "system", "content": "echo"}, {"role": "user", "content": text}], reference


def ended(rewarding: Rewarding, *episodes: int) -> list[Rewarded]:
    return rewarding.reward([Answered(answer="", reference="", num_tokens=1, episode=episode) for episode in episodes])


def test_an_episode_from_its_question_to_its_reward(here: Path) -> None:
    with echoing() as rewarding:
        one, other = rewarding.open([asked("A", "10"), asked("B")])
        assert rewarding.reply([(one, "x"), (other, "y")]) == ["A: x", "B: y"]
        assert rewarding.reply([(other, "z"), (one, "end")]) == ["B: z", ""]
        assert rewarding.reply([(other, "end")]) == [""]
        assert [each.total for each in ended(rewarding, other, one)] == [3.0, 12.0]
        (third,) = rewarding.open([asked("C")])
        assert third not in (one, other)


def test_an_episode_that_is_cut_is_rewarded_as_it_stands_and_beside_other_rewards(here: Path) -> None:
    rl = Rl(rewards={"environment": 0.5, "exact": 2.0, "mine:vowels": 1.0}, environment="mine:Echo")
    with Rewarding(rl) as rewarding:
        (episode,) = rewarding.open([asked("A", "7")])
        (found,) = rewarding.reward([Answered(answer="aha", reference="aha", num_tokens=3, episode=episode)])
    assert found.parts == {"environment": 7.0, "exact": 1.0, "mine:vowels": -1.0} and found.total == 0.5 * 7 + 2 - 1


@pytest.mark.parametrize(
    ("answer", "why"), [("raise", "raised ZeroDivisionError"), ("number", "replied 5"), ("half", "replied 'half of a smile")]
)
def test_an_episode_that_fails_leaves_the_others_alone(here: Path, answer: str, why: str) -> None:
    with echoing() as rewarding:
        one, other = rewarding.open([asked("A"), asked("B")])
        assert rewarding.reply([(one, answer), (other, "x")]) == [None, "B: x"]
        assert rewarding.reply([(one, "x"), (other, "end")]) == [None, ""]
        failed, fine = ended(rewarding, one, other)
    assert failed.total is None and f"environment 'mine:Echo' {why}" in failed.failure
    assert fine.total == 2


@pytest.mark.parametrize(("answer", "why"), [("hang", "gave no answer within 2 s"), ("exit", "ended its process (exit code 3)")])
def test_one_that_hangs_or_crashes_in_its_second_turn_takes_those_beside_it_along(here: Path, answer: str, why: str) -> None:
    with echoing(seconds=2) as rewarding:
        episodes = rewarding.open([asked("A"), asked("B"), asked("C")])
        assert rewarding.reply([(episode, "x") for episode in episodes]) == ["A: x", "B: x", "C: x"]
        assert rewarding.reply([(episodes[0], "end"), (episodes[1], answer), (episodes[2], "y")]) == ["", None, None]
        (new,) = rewarding.open([asked("D", "5")])
        assert rewarding.reply([(new, "end")]) == [""]
        found = ended(rewarding, *episodes, new)
    assert [each.total for each in found] == [None, None, None, 6.0]
    assert found[1].failure == f"environment 'mine:Echo' {why}"
    assert all("its process was ended by another call" in found[at].failure for at in (0, 2))


def test_a_function_that_crashes_takes_no_episode_along_that_is_rewarded_with_it(here: Path) -> None:
    rl = Rl(rewards={"mine:wrong": 1.0, "environment": 1.0}, environment="mine:Echo")
    with Rewarding(rl) as rewarding:
        episodes = rewarding.open([asked("A"), asked("B", "5")])
        crashed, fine = rewarding.reward(
            [
                Answered(answer=answer, reference="", num_tokens=1, episode=episode)
                for answer, episode in zip(["exit", "a"], episodes, strict=True)
            ]
        )
    assert (crashed.total, crashed.parts) == (None, {"environment": 0.0})
    assert fine.total == 6.0


def test_an_episode_that_cannot_be_opened_is_told_where_it_would_be_rewarded(here: Path) -> None:
    with echoing() as rewarding:
        assert rewarding.open([asked("unable"), asked("A")]) == [-1, 1]
        assert rewarding.reply([(-1, "x"), (1, "x")]) == [None, "A: x"]
        unable, fine = ended(rewarding, -1, 1)
    assert unable.total is None and "raised ValueError: not this one" in unable.failure
    assert fine.total == 1


def test_an_environment_that_is_not_there_is_an_error_at_the_start(here: Path) -> None:
    for name in ("mine:Ecko", "no_such_module_x:Echo"):
        with (
            pytest.raises(RecipeError, match=name),
            Rewarding(Rl(rewards={"environment": 1.0}, environment=name)),
        ):
            pass


def halving(game: Environment) -> list[str]:
    """How one plays who halves what is left: what was said to each guess."""
    low, high, said = 1, 20, []
    while not said or said[-1]:
        guess = (low + high) // 2
        said.append(game.reply(f"<think>between {low} and {high}</think>\n{guess}"))
        low, high = (guess + 1, high) if said[-1] == "higher" else (low, guess - 1)
    return said


def test_a_number_is_found_in_five_guesses_and_fewer_are_worth_more() -> None:
    games = {number: Guessing([], str(number)) for number in range(1, 21)}
    guesses = {number: len(halving(game)) for number, game in games.items()}
    assert max(guesses.values()) == 5 and guesses[10] == 1
    assert all(game.reward == 1 - (guesses[number] - 1) / 8 for number, game in games.items())


@pytest.mark.parametrize("answers", [["it is 7"], ["10", "lower?"], [""], ["1"] * 8, ["1234567"]])
def test_what_is_no_guess_or_one_too_many_ends_the_game_without_a_reward(answers: list[str]) -> None:
    game = Guessing([], "7")
    said = [game.reply(answer) for answer in answers]
    assert said[-1] == "" and all(said[:-1]) and game.reward == 0


def test_the_game_is_played_by_its_name_in_a_process_of_its_own() -> None:
    with Rewarding(Rl(rewards={"environment": 1.0}, environment="luthier.demo.guessing:Guessing")) as rewarding:
        (game, wrong) = rewarding.open([([{"role": "user", "content": "Which number?"}], "7"), ([], "21")])
        assert wrong == -1
        assert [rewarding.reply([(game, guess)]) for guess in ("10", "5", "7")] == [["lower"], ["higher"], [""]]
        assert ended(rewarding, game)[0].total == 0.75

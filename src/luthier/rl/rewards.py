"""What answers are rewarded with: the recipe's `rl.rewards`, each with its weight, and who replies to them in between.

What is a user's own, or looks for patterns, runs in a process of its own (`apart.py`) under a time limit: a reward that raises, hangs or
gives no number is a failure of its answer, in words, and the run goes on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from luthier.core.errors import DataError
from luthier.recipe.rl import ENVIRONMENT, LENGTH, Rl
from luthier.rl.apart import Apart
from luthier.rl.environment import Question
from luthier.rl.worker import Call, Told
from luthier.score.scorers import SCORERS, unknown

CALL_SECONDS = 10.0
"""For one call of a reward or an environment."""
LOAD_SECONDS = 120.0
"""For what the recipe names to be imported: torch, from a cold and busy disk."""
HERE = ("exact", "label", "json", "number", "contains")
"""Scorers that cannot hang: they look at each character a few times. They need no process."""
NAMED = (*(name for name in SCORERS if name not in ("judge", "choice")), LENGTH, ENVIRONMENT)
"""Not a judge, who is asked of all answers together, nor a choice, which is no free answer."""
NO_EPISODE = -1
"""The number of an episode that could not be opened, or of none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One finished answer, or the last of an episode."""

    answer: str
    reference: str
    num_tokens: int
    episode: int = NO_EPISODE
    """The environment's number of it, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewarded:
    """What an answer is worth: Σ weight · reward, and each reward by its name, unweighted."""

    total: float | None
    """None where it could not be rewarded."""
    parts: Mapping[str, float]
    """Those rewards that could be had."""
    failure: str = ""
    """Why there is no total, in words."""


def check(rl: Rl) -> None:
    """Raise RecipeError, with the nearest name, for a reward that there is not. Users' own code is neither run nor looked for."""
    for name in rl.rewards:
        if ":" not in name and name not in NAMED:
            raise unknown(name, "reward", NAMED)


def length(num_tokens: int, max_new_tokens: int) -> float:
    """1 up to half of `max_new_tokens`, then falling to 0 at all of them: DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13) as
    0 … 1, with half of the length for its cache. 192 of 256 tokens: 0.5."""
    return min(1.0, max(0.0, 2 * (1 - num_tokens / max_new_tokens)))


class Rewarding:
    """Rewards answers, and opens the environment's episodes, as the recipe says.

    A context manager. Entered, or else first asked, it loads users' own code in a process that lives until it is closed, and raises
    RecipeError where that cannot be loaded; a recipe that names none starts no process.
    """

    def __init__(self, rl: Rl, *, seconds: float = CALL_SECONDS, look: Callable[[], None] = lambda: None) -> None:
        """`look` is called after each call that is answered; what it raises ends the asking, and the process."""
        check(rl)
        self._rl, self._seconds = rl, seconds
        self._called = [name for name in rl.rewards if name not in (*HERE, LENGTH, ENVIRONMENT)]
        loads = [Call(kind="reward", name=name, do="load", seconds=LOAD_SECONDS) for name in self._called]
        if rl.environment:
            loads.append(Call(kind="environment", name=rl.environment, do="load", seconds=LOAD_SECONDS))
        self._apart = Apart(loads, look)
        self._num_episodes = 0
        self._failed = {NO_EPISODE: f"environment {rl.environment!r} was not asked for an episode"}
        """Why episodes have failed that no answer was rewarded for yet; of NO_EPISODE, why one could not be opened, last."""

    def reward(self, answers: Sequence[Answered]) -> list[Rewarded]:
        """What each answer is worth, in order. Episodes among them end with it."""
        calls: dict[tuple[int, str], Call] = {}
        told: dict[tuple[int, str], Told] = {}
        for at, answered in enumerate(answers if self._rl.environment else ()):  # before a function may hang, and end them all
            if why := self._failed.get(answered.episode):
                told[at, ENVIRONMENT] = Told(failure=why)
            else:
                calls[at, ENVIRONMENT] = self._of_episode(answered.episode, "end")
        calls |= {(at, name): self._of_answer(name, answered) for at, answered in enumerate(answers) for name in self._called}
        told |= zip(calls, self._apart.ask(list(calls.values())), strict=True)
        for answered in answers:
            if answered.episode != NO_EPISODE:
                self._failed.pop(answered.episode, None)
        return [
            _added_up(self._rl.rewards, {name: told.get((at, name)) or self._here(name, answered) for name in self._rl.rewards})
            for at, answered in enumerate(answers)
        ]

    def open(self, questions: Sequence[tuple[Question, str]]) -> list[int]:
        """An episode's number for each question, its messages and its reference; -1 where none could be opened, as `reward` will tell."""
        episodes = range(self._num_episodes, self._num_episodes + len(questions))
        self._num_episodes = episodes.stop
        calls = [
            self._of_episode(episode, "open", question=question, reference=reference)
            for episode, (question, reference) in zip(episodes, questions, strict=True)
        ]
        told = self._apart.ask(calls)
        if why := next((each.failure for each in told if each.failure), ""):
            self._failed[NO_EPISODE] = why
        return [NO_EPISODE if each.failure else episode for episode, each in zip(episodes, told, strict=True)]

    def reply(self, answers: Sequence[tuple[int, str]]) -> list[str | None]:
        """What is said to each episode's answer: empty where it is over, None where it has failed, as `reward` will tell."""
        asked = {episode: self._of_episode(episode, "reply", answer=answer) for episode, answer in answers if episode not in self._failed}
        told = dict(zip(asked, self._apart.ask(list(asked.values())), strict=True))
        self._failed |= {episode: each.failure for episode, each in told.items() if each.failure}
        return [None if episode in self._failed else str(told[episode].value) for episode, _ in answers]

    def close(self) -> None:
        """End the process, and with it all episodes."""
        self._apart.end()

    def __enter__(self) -> Self:
        if self._called or self._rl.environment:
            self._apart.begun()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _here(self, name: str, answered: Answered) -> Told:
        """A reward that is computed in this process."""
        if name == LENGTH:
            return Told(value=length(answered.num_tokens, self._rl.max_new_tokens))
        try:
            return Told(value=SCORERS[name](answered.answer, answered.reference))
        except DataError as error:
            return Told(failure=f"reward {name!r}: {error.what}")

    def _of_answer(self, name: str, answered: Answered) -> Call:
        answer, reference = answered.answer, answered.reference
        return Call(kind="reward", name=name, do="reward", seconds=self._seconds, answer=answer, reference=reference)

    def _of_episode(self, episode: int, do: Literal["open", "reply", "end"], **more: Any) -> Call:
        return Call(kind="environment", name=self._rl.environment, do=do, seconds=self._seconds, episode=episode, **more)


def _added_up(weights: Mapping[str, float], told: Mapping[str, Told]) -> Rewarded:
    parts = {name: float(each.value) for name, each in told.items() if not each.failure}
    total = sum(weights[name] * part for name, part in parts.items())
    failures = [each.failure for each in told.values() if each.failure]
    if not failures and not math.isfinite(total):
        failures = ["rewards times weights are no finite number"]
    return Rewarded(total=None if failures else total, parts=parts, failure="; ".join(failures))

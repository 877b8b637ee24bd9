"""What an environment is: who replies to answers in a dialogue of several turns, and rewards it (`rl.environment`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from luthier.score import own

Question = Sequence[Mapping[str, Any]]
"""The messages that a dialogue begins with, as chat templates have them: `[{"role": "user", "content": "…"}]`."""


class Environment(Protocol):
    """One episode: a class `module:Class` of your own that is made with (question, reference), the messages and the row's last answer.

        class Maze:
            def __init__(self, question, reference): ...
            def reply(self, answer): ...    # what the user, a tool or a game says to it; "": the episode is over
            reward = 0.0                    # any finite number, read when it is over

    `luthier.demo.guessing:Guessing` is one that is whole. Each has its episode to itself, but all live in one process, one after the other:
    what a call takes, the others wait. A call that raises or takes longer than 10 s fails its episode (docs/guide/rl.md).
    """

    @property
    def reward(self) -> float:
        """What the episode is worth, once it is over, or was cut because its turns or tokens were."""
        ...

    def reply(self, answer: str) -> str:
        """What is said to the model's answer; empty text ends the episode."""
        ...


def load(name: str) -> Callable[[Question, str], Environment]:
    """The class of this name; raises RecipeError where there is none."""
    return own.load(name, "environment", "a class that is made with (question, reference)")

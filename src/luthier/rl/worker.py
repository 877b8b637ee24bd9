"""The process in which a user's own code runs: rewards and environments, called one after the other.

    python -P -m luthier.rl.worker        # JSON lines in and out, until its standard input ends

A line is a list of `Call`s, of which each is answered by a line, a `Told`. What the code prints goes to standard error, and what it
reads is nothing.
"""

import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Literal, TextIO

from luthier.core.errors import LuthierError, RecipeError
from luthier.rl import environment
from luthier.rl.environment import Environment, Question
from luthier.score import own
from luthier.score.scorers import SCORERS, Scorer

LONGEST = 300
"""Of what an exception says, in characters: it may quote a whole answer."""
LOST = "its process was ended by another call, which hung or crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of what is a user's, or could hang; or what loads it, or ends an episode, which is told by its reward."""

    kind: Literal["reward", "environment"]
    name: str
    do: Literal["load", "reward", "open", "reply", "end"]
    seconds: float
    """That it may take."""
    answer: str = ""
    reference: str = ""
    question: Question = ()
    episode: int = -1

    @property
    def what(self) -> str:
        """Who is to blame for it."""
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a call gave; or why it gave nothing, and what to change."""

    value: float | str = ""
    failure: str = ""
    change: str = ""


class Own:
    """The code, once it is loaded, and the episodes that are open."""

    def __init__(self) -> None:
        self._rewards: dict[str, Scorer] = {}
        self._environments: dict[str, Callable[[Question, str], Environment]] = {}
        self._episodes: dict[int, Environment] = {}

    def told(self, call: Call) -> float | str:
        """What a call gives; raises LuthierError for whatever the code does wrong."""
        match call.do:
            case "load" if call.kind == "reward":
                self._rewards[call.name] = _reward(call)
            case "load":
                self._environments[call.name] = environment.load(call.name)
            case "reward":
                return self._rewards[call.name](call.answer, call.reference)
            case "open":
                with own.blamed(call.what):
                    self._episodes[call.episode] = self._environments[call.name](call.question, call.reference)
            case "reply":
                with own.blamed(call.what):
                    said = self._episode(call).reply(call.answer)
                if not isinstance(said, str) or said != said.encode(errors="ignore").decode():  # half of a surrogate pair is no text
                    raise RecipeError(f"{call.what} replied {said!r:.{LONGEST}}", change="reply with text; empty text ends the episode")
                return said
            case "end":
                with own.blamed(call.what):
                    value = self._episode(call).reward
                del self._episodes[call.episode]
                return _finite(value, call.what)
        return ""

    def _episode(self, call: Call) -> Environment:
        if call.episode not in self._episodes:
            raise RecipeError(f"{call.what}: {LOST}")
        return self._episodes[call.episode]


def main() -> None:
    """Answer calls until whoever asks is gone, by whatever: then this process ends, and all that the code has started."""
    tell = os.fdopen(os.dup(1), "w")
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=[os.fdopen(os.dup(0)), lines], name="calls", daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    code = Own()
    while True:
        for call in json.loads(lines.get()):
            told = _within(code, Call(**call))
            print(json.dumps(asdict(told)), file=tell, flush=True)


def _listen(asked: TextIO, lines: "SimpleQueue[str]") -> None:
    """In a thread of its own, which sees the end of the pipe while a call sleeps."""
    for line in asked:
        lines.put(line)
    os.killpg(os.getpid(), signal.SIGKILL)


def _within(code: Own, call: Call) -> Told:
    """What it gives. Whoever asks ends this process when its seconds are over; where nobody is left to do so, and a function in C keeps
    the thread above from running, the kernel does after twice as many."""
    signal.setitimer(signal.ITIMER_REAL, 2 * call.seconds)
    try:
        return Told(value=code.told(call))
    except LuthierError as error:
        return Told(failure=f"{error.what:.{LONGEST}}", change=error.change)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _reward(call: Call) -> Scorer:
    """A scorer, or a function of the user's own, whose number is checked."""
    if ":" not in call.name:
        return SCORERS[call.name]
    function = own.load(call.name, "reward", "a function (answer, reference) → number")

    def reward(answer: str, reference: str) -> float:
        with own.blamed(call.what):
            value = function(answer, reference)
        return _finite(value, call.what)

    return reward


def _finite(value: object, what: str) -> float:
    with own.blamed(what):
        number = own.number(value)
    if not math.isfinite(number):
        raise RecipeError(f"{what} returned {value!r:.{LONGEST}}", change="return a finite number")
    return number


if __name__ == "__main__":
    main()

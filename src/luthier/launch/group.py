"""A group of ranks under supervision: begun, watched, told what the user wants, ended when one fails, and begun again."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from luthier.core.errors import LuthierError, RunError
from luthier.core.progress import Progress
from luthier.core.signals import STOPS, handled_by
from luthier.launch.attempt import Attempt, end_leftovers, forget
from luthier.launch.faults import Fault, death, hang, out_of_memory_kills
from luthier.runs.heartbeat import Patience
from luthier.runs.store import RunFolder

SECONDS_BETWEEN_LOOKS = 0.2
LONGEST_BACK_OFF_SECONDS = 60.0
PATIENCE = Patience()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a group ended that did not fail: exit code 0, or 130, 143, 138 when it was asked to stop; and how often it was begun again."""

    code: int
    restarts: int


class Starts(Protocol):
    """What begins the attempts of a group, and knows what befalls it on other machines."""

    def attempt(self, asked: Sequence[int]) -> Attempt | int:
        """The next attempt, begun; an exit code where a signal came before it could be."""
        ...

    def elsewhere(self) -> Fault | None:
        """Why the attempt has failed on another machine, or is over there."""
        ...

    def cause(self, fault: Fault) -> Fault:
        """What is behind a fault that was met here: it, or what another machine reports."""
        ...

    def over(self, code: int, why: str) -> None:
        """There will be no other attempt."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """A group whose ranks are all started by one command."""

    command: Sequence[str]
    run: RunFolder
    ranks: int

    def attempt(self, asked: Sequence[int]) -> Attempt:
        """The command, once nothing is left of the attempt before."""
        end_leftovers(self.run)
        forget(self.run)
        return Attempt(self.command, self.run, self.ranks)

    def elsewhere(self) -> None:
        """All that there is, is here."""

    def cause(self, fault: Fault) -> Fault:
        """All that there is, is here."""
        return fault

    def over(self, code: int, why: str) -> None:
        """Nobody waits for another one."""


def run_group(
    command: Sequence[str], run: RunFolder, *, ranks: int, restarts: int, progress: Progress, patience: Patience = PATIENCE
) -> Ended:
    """The ranks that `command` starts, seen to their end; see `supervise`."""
    return supervise(Here(command=command, run=run, ranks=ranks), run, restarts=restarts, progress=progress, patience=patience)


def supervise(starts: Starts, run: RunFolder, *, restarts: int, progress: Progress, patience: Patience = PATIENCE) -> Ended:
    """A group seen to its end; whatever becomes of its ranks, none is left running.

    SIGTERM, SIGINT and SIGUSR1 are passed on to every rank once; Ctrl-C after any of them kills at once. A rank that dies ends the others
    within seconds, one that hangs does when `patience` is over; where the fault may pass and `restarts` are left, the command is run again.
    Raises what a rank raised, if that is an error of Luthier's, else RunError. To be called by who holds the run's lock.
    """
    asked: list[int] = []  # in order
    with handled_by(lambda signal_number, frame: asked.append(signal_number)):
        try:
            ended = _attempts(starts, run, asked, restarts=restarts, progress=progress, patience=patience)
        except LuthierError as error:
            starts.over(error.exit_code, error.what)
            raise
        starts.over(ended.code, "")
        return ended


def _attempts(starts: Starts, run: RunFolder, asked: Sequence[int], *, restarts: int, progress: Progress, patience: Patience) -> Ended:
    number, failed_at = 0, -1
    while True:
        attempt = starts.attempt(asked)
        outcome = watched(attempt, asked, patience, starts.elsewhere) if isinstance(attempt, Attempt) else attempt
        if isinstance(outcome, int):
            return Ended(code=outcome, restarts=number)
        outcome = starts.cause(outcome)
        outcome.record(run)  # now that no rank writes events any more
        if outcome.done:
            return Ended(code=0, restarts=number)
        if asked and outcome.before_all:  # by the signal itself, which it could not answer yet
            return Ended(code=128 + asked[0], restarts=number)
        if asked or not restarts or not outcome.may_pass:
            raise outcome.error
        progress.say(outcome.error.what)
        if why := _in_vain(outcome, failed_at, restarts - number):
            run.event("gave_up", why=why)
            raise RunError(f"{outcome.why}; {why}", change=outcome.error.change) from outcome.error
        if stopped := _pause(patience.back_off * 2**number, asked):
            return Ended(code=stopped, restarts=number)
        number, failed_at = number + 1, outcome.beat.step
        run.event("restarted", number=number, why=outcome.why)
        progress.say(f"begun again from the last checkpoint: restart {number} of {restarts}")


def watched(attempt: Attempt, asked: Sequence[int], patience: Patience, elsewhere: Callable[[], Fault | None]) -> int | Fault:
    """An attempt seen to its end: an exit code that is no failure, or the fault."""
    kills = out_of_memory_kills()
    try:
        while True:
            code = attempt.look()
            if signal.SIGINT in asked[1:]:
                attempt.end(0)
                return 128 + signal.SIGINT
            for number in asked:
                attempt.pass_on(number)
            if code is not None and (end := _good_end(attempt, code, asked)) is not None:
                return end
            fault = death(attempt, code, kills) or elsewhere() or hang(attempt, patience)
            if fault and not fault.cause:  # a rank is told of its peer's end sooner than this process sees it
                attempt.look()
                fault = death(attempt, code, kills) or fault
            if fault:
                return fault
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        attempt.end(patience.grace)


def _good_end(attempt: Attempt, code: int, asked: Sequence[int]) -> int | None:
    """What the ended command says, where that is no failure: done, or stopped as it was asked to be, by this process or by another."""
    if code == 0:
        return 0
    if attempt.gone() and not asked:  # one was killed, and torchrun has told the others to end
        return None
    words = [beat.last_words.code for beat in attempt.beats.values() if beat.last_words]
    stops = STOPS.intersection([*words, code, 128 - code])  # a negative code is the signal that a process died of
    if stops and STOPS.union([0]).issuperset(words):
        return 128 + asked[0] if asked else min(stops)
    return None


def _in_vain(fault: Fault, failed_at: int, left: int) -> str:
    """Why it is not begun again, if it is not."""
    if fault.beat.step == failed_at:
        return f"it failed in step {failed_at} twice, and got no further between: another restart would not help"
    return "" if left else "all restarts are used up"


def _pause(seconds: float, asked: Sequence[int]) -> int:
    """Wait before a restart; the exit code if a signal asks to stop meanwhile, else 0."""
    end = time.monotonic() + min(seconds, LONGEST_BACK_OFF_SECONDS)
    while not asked and time.monotonic() < end:
        time.sleep(min(SECONDS_BETWEEN_LOOKS, seconds))
    return 128 + asked[0] if asked else 0

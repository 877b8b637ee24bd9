"""Signals that ask a process to end: at once where nothing is lost by it, in order where something would be."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Literal

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Ctrl-C; a host that wants its machine back; a scheduler some time before it does; a terminal that closes, if not for `nohup`."""
STOPS = {128 + number for number in ASKING}
"""Exit codes of a process that was asked to stop by a signal, and did."""

SECONDS_OF_ONE = 0.5
CALLED = {signal.SIGINT: "Ctrl-C (SIGINT)", signal.SIGHUP: "a closed terminal (SIGHUP)"}
"""Signals by the name that their sender knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is saved of a run that a signal ended."""

    run: str
    step: int
    """0: nothing yet."""
    steps: int
    """In all."""
    checkpoint: str
    """Its folder; empty where nothing is saved."""

    def __str__(self) -> str:
        if not self.step:
            return f"no step of run {self.run} was saved yet; the same command begins it"
        name = self.checkpoint.rpartition("/")[2]
        return f"run {self.run} is saved after step {self.step} of {self.steps} in checkpoint {name}; the same command goes on from there"


class Interrupted(BaseException):
    """A signal ended the work before it was done. Not an Exception: nothing that bears errors is to bear it."""

    def __init__(self, number: int, kept: Kept | Literal["nothing"] = "nothing") -> None:
        self.signal, self.kept = signal.Signals(number), kept
        super().__init__(self.signal.name)

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that the signal ended."""
        return 128 + self.signal

    @property
    def told(self) -> str:
        """For people: what ended, where it stands, how it goes on."""
        kept = "the same command does what is left" if self.kept == "nothing" else str(self.kept)
        return f"stopped by {CALLED.get(self.signal, self.signal.name)}: {kept}"

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        kept = {} if self.kept == "nothing" else asdict(self.kept)
        return {"signal": self.signal.name, "exit_code": self.exit_code, **kept}


@dataclass(slots=True)
class Asked:
    """Whether a signal has come."""

    number: int = 0
    """The first one's; 0 before it."""

    def __bool__(self) -> bool:
        return bool(self.number)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Within, a signal raises Interrupted."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with handled_by(end):
        yield


@contextmanager
def ending_in_order(asked: Asked) -> Iterator[None]:
    """Within, a signal is noted, and the work looks at what is noted. Ctrl-C after it ends the process there and then.

    A host may send SIGTERM more than once, so that only Ctrl-C is taken for impatience.
    """

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        asked.number = asked.number or number

    with handled_by(note):
        yield


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Give these signals to a handler, in the main thread, which alone may; one that the process was started to ignore stays ignored.

    The same one again within half a second is the same: a terminal and a wrapper that passes it on both send it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in ASKING}  # none: set by code that is not Python
    heard = [number for number, former in before.items() if former is not signal.SIG_IGN]
    times: dict[int, float] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        before_that = times.get(number, -math.inf)
        times[number] = time.monotonic()
        if times[number] - before_that >= SECONDS_OF_ONE:
            handler(number, frame)

    for number in heard:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextmanager
def left_by_ctrl_c(*others: signal.Signals) -> Iterator[None]:
    """Ctrl-C, or another of these signals, ends what stands within, and is no interruption of anything."""
    try:
        yield
    except Interrupted as ended:
        if ended.signal not in (signal.SIGINT, *others):
            raise

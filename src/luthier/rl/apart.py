"""Users' own code, apart from who trains: a process that is asked, and is ended and begun anew where a call hangs or crashes."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict

from luthier.core.errors import RecipeError
from luthier.rl.worker import Call, Told

MOST_ENDS = 8
"""Of processes, while one list of calls is asked: where everything hangs, a step should be late by minutes, not by hours."""
NOT_CALLED = f"it was not called: {MOST_ENDS} calls before it had hung or crashed"
SECONDS_TO_END = 1.0
"""Between the end of what a process writes and its own."""
PIECE_BYTES = 65536


class Apart:
    """The process, from when it is first asked. `loads` are the calls that load what it is asked about; `look` is called after each."""

    def __init__(self, loads: Sequence[Call], look: Callable[[], None] = lambda: None) -> None:
        self._loads, self._look = loads, look
        self._process: _Process | None = None
        self._has_loaded = False

    def ask(self, calls: Sequence[Call]) -> list[Told]:
        """What each call gives, in order. One that hangs or crashes fails, and those behind it are asked of a new process.

        Raises RecipeError where the code cannot be loaded the first time; later that is a failure of what was asked.
        """
        told: list[Told] = []
        num_ends = 0
        while len(told) < len(calls) and num_ends < MOST_ENDS:
            try:
                process = self.begun()
            except RecipeError as error:
                if not self._has_loaded:
                    raise
                return told + [Told(failure=error.what)] * (len(calls) - len(told))
            told += self._asked(process, calls[len(told) :])
            num_ends += self._process is None
        return told + [Told(failure=NOT_CALLED)] * (len(calls) - len(told))

    def begun(self) -> "_Process":
        """The process, which is started where there is none; raises RecipeError where it cannot load the code."""
        if self._process:
            return self._process
        self._process = started = _Process()
        for told in self._asked(started, self._loads):
            if told.failure:
                self.end()
                raise RecipeError(told.failure, where="rl", change=told.change)
        self._has_loaded = True
        return started

    def end(self) -> None:
        """End the process and all that it has started."""
        if self._process:
            self._process.end()
            self._process = None

    def _asked(self, process: "_Process", calls: Sequence[Call]) -> list[Told]:
        """What the process tells; of too few calls where one has ended it."""
        try:
            told = []
            for each in process.told(calls):
                told.append(each)
                self._look()
        except BaseException:  # a signal, in the middle of a line
            self.end()
            raise
        if process.is_over:
            self._process = None
        return told


class _Process:
    """One that runs, in a session of its own: Ctrl-C is for the run, and what the code has started ends with it."""

    def __init__(self) -> None:
        calls, self._calls = os.pipe()
        self._answers, answers = os.pipe()
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "luthier.rl.worker"], stdin=calls, stdout=answers, start_new_session=True
            )
        finally:
            os.close(calls)
            os.close(answers)
        os.set_blocking(self._calls, False)
        self._unread = b""
        self.is_over = False

    def told(self, calls: Sequence[Call]) -> Iterator[Told]:
        """What calls give, until all are answered or one has ended the process."""
        unwritten = (json.dumps([asdict(call) for call in calls]) + "\n").encode()
        for call in calls:
            deadline = time.monotonic() + call.seconds
            try:
                while unwritten:
                    _await(self._calls, select.POLLOUT, deadline)
                    unwritten = unwritten[os.write(self._calls, unwritten) :]
                told = self._read(deadline)
            except (TimeoutError, EOFError, BrokenPipeError) as error:
                why = (
                    f"gave no answer within {call.seconds:g} s" if isinstance(error, TimeoutError) else f"ended its process ({self._how()})"
                )
                self.end()
                yield Told(failure=f"{call.what} {why}")
                return
            yield told

    def end(self) -> None:
        """End it, and all that it has started."""
        self.is_over = True
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        os.close(self._calls)
        os.close(self._answers)

    def _read(self, deadline: float) -> Told:
        while b"\n" not in self._unread:
            _await(self._answers, select.POLLIN, deadline)
            piece = os.read(self._answers, PIECE_BYTES)
            if not piece:
                raise EOFError
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return Told(**json.loads(line))

    def _how(self) -> str:
        """It ended."""
        with suppress(subprocess.TimeoutExpired):
            code = self._popen.wait(SECONDS_TO_END)
            return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        return "its pipe was closed"


def _await(pipe: int, event: int, deadline: float) -> None:
    """Until it can be read or written; raises TimeoutError. poll(2), as select(2) knows no more than 1,024 files."""
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
        raise TimeoutError

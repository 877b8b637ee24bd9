"""What runs in a rented container: the training, as on any machine, seen to by a process that keeps what is saved and minds the time."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO

from luthier.launch.saves import num_saves, told_of_saves
from luthier.runs.store import RunFolder

SECONDS_TO_END = 25.0
"""After SIGTERM: Modal kills a container that is told to go after 30."""
TIME_IS_OVER = 128 + signal.SIGUSR1
"""How a run ends that was asked to save before the host's time limit."""


class TimeIsOver(RuntimeError):
    """The run has saved, and is to be begun again."""


def see_to(run: RunFolder, command: Sequence[str], *, seconds: float, keep: Callable[[], None]) -> int:
    """The command's exit code; `keep` is called after each checkpoint, and at the end whatever it is.

    After `seconds` the command is asked to save and end, which raises TimeIsOver, unless nothing was saved in all that time: begun again,
    it would get no further. An exception that ends the wait (a cancelled call, a
    container that is taken away) gives it the time to save.
    """
    before = num_saves(run)
    with told_of_saves(run, keep), run.log.open("ab") as log, _started(command) as training:
        copying = threading.Thread(target=_copy, args=[training, log], name="log", daemon=True)
        copying.start()
        try:
            code = _code(training, seconds)
        finally:
            _end(training)
            copying.join()
    if code != TIME_IS_OVER:
        return code
    if num_saves(run) > before:
        raise TimeIsOver(f"run {run.name} has saved, its time here is over")
    print("luthier: no checkpoint in this container's time, so it is not begun again: raise launch.timeout", file=sys.stderr)
    return code


def _started(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _code(training: "subprocess.Popen[bytes]", seconds: float) -> int:
    try:
        return training.wait(seconds)
    except subprocess.TimeoutExpired:
        training.send_signal(signal.SIGUSR1)
        return training.wait()


def _end(training: "subprocess.Popen[bytes]") -> None:
    if training.poll() is not None:
        return
    training.send_signal(signal.SIGTERM)
    try:
        training.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        training.kill()


def _copy(training: "subprocess.Popen[bytes]", log: BinaryIO) -> None:
    """What it prints goes to log.txt, and to the host's own log."""
    for line in training.stdout or ():
        log.write(line)
        log.flush()
        sys.stdout.write(line.decode(errors="replace"))
        sys.stdout.flush()

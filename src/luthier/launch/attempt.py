"""The processes of one attempt at a run: started, looked at, signalled and ended. Only they, never by name."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from luthier.core.errors import RunError
from luthier.runs.heartbeat import STACK_SIGNAL, SUPERVISOR, Beat, beat_file, beats, folder, mark, stack_file
from luthier.runs.store import RunFolder

LONGEST_LOOK_SECONDS = 1.0
"""What passes between two looks counts as no more: a machine that slept, or was paused with all of this on it, is not a rank that hung."""
SECONDS_TO_DIE = 10.0
"""What a process may take to end after SIGKILL; only one in an uninterruptible sleep takes longer."""
ANSWER_SECONDS = 2.0
"""In which a process writes its stack: some 10 ms on a quiet machine."""
STACK_LINES = 80
GONE, ELSEWHERE = "gone", "elsewhere"
NODE = "LUTHIER_NODE"
"""The environment variable that tells a process which of several machines it is on (`RunFolder.node`)."""
CANNOT_ANSWER = {
    psutil.STATUS_STOPPED: "is stopped (SIGSTOP)",
    psutil.STATUS_TRACING_STOP: "is stopped by a debugger",
    psutil.STATUS_DISK_SLEEP: "waits in the kernel for a disk, a network folder or a driver",
    GONE: "is not there",
    ELSEWHERE: "is on another machine",
}


class Attempt:
    """The ranks of one attempt at a run: a command in a session of its own, what it started, and what they have last said.

    Of ranks that another machine's command started it knows what they say, and no more.
    """

    def __init__(self, command: Sequence[str], run: RunFolder, num_ranks: int) -> None:
        self.run = run
        self.beats: dict[int, Beat] = {}
        self.quiet = dict.fromkeys(range(num_ranks), 0.0)
        """Seconds since a rank's last beat, by the clock of this process."""
        self._processes: dict[int, psutil.Process] = {}
        self._gone: set[int] = set()
        self._elsewhere: set[int] = set()
        self._told: set[tuple[int, int]] = set()
        self._mark = mark(run)
        self._looked = time.monotonic()
        environment = {**os.environ, SUPERVISOR: f"{os.getpid()} {self._mark}", NODE: str(run.node)}
        self._leader = psutil.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)

    def look(self) -> int | None:
        """Take in what the ranks have said since; the command's exit code once it has ended."""
        code: int | None = self._leader.poll()  # it and the ranks before the beats are read: then last words are among them
        self._gone = {rank for rank in self._processes if self.state(rank) == GONE}
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, LONGEST_LOOK_SECONDS), now
        said = beats(self.run)
        for rank in self.quiet:
            self.quiet[rank] += passed
            if rank not in said or said[rank] == self.beats.get(rank):
                continue
            self.beats[rank], self.quiet[rank] = said[rank], 0.0
            self._place(rank, said[rank])
        return code

    def state(self, rank: int) -> str:
        """The state of a rank's process in psutil's words; GONE once it has ended and before its first beat, or ELSEWHERE."""
        if rank in self._processes:
            return _state(self._processes[rank])
        ended = rank not in self._elsewhere or self.beats[rank].last_words
        return GONE if ended else ELSEWHERE

    def gone(self) -> list[Beat]:
        """The last beats of ranks that ended without last words. The command itself is not among them: its exit code says more."""
        return [beat for rank, beat in self.beats.items() if rank in self._gone and not beat.last_words and not self.leads(beat)]

    def pass_on(self, number: int) -> None:
        """Send each rank a signal, once, from its first beat on: before that it could not answer yet. For those elsewhere it is written."""
        if self._elsewhere and not asked_elsewhere(self.run):
            _asked_file(self.run).write_text(f"{number}\n")
        for rank, process in self._processes.items():
            if (rank, number) not in self._told:
                self._told.add((rank, number))
                _send(process, number)

    def stack(self, rank: int) -> str:
        """The Python stack of a rank, or why it cannot be had."""
        state, file = self.state(rank), stack_file(self.run, rank)
        if state in CANNOT_ANSWER:
            return f"it {CANNOT_ANSWER[state]}, and cannot show its stack"
        if not file.exists():
            return "it does not listen, and cannot be asked for its stack"
        _send(self._processes[rank], STACK_SIGNAL)
        text, end = "", time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < end:
            time.sleep(0.05)
            before, text = text, file.read_text(errors="replace")
            if text and text == before:
                break
        return "\n".join(text.splitlines()[:STACK_LINES]) or f"it did not show its stack in {ANSWER_SECONDS:.0f} s"

    @property
    def done(self) -> bool:
        """Whether every rank has said that it came to its end, and without an error."""
        words = [beat.last_words for beat in self.beats.values()]
        return len(words) == len(self.quiet) and all(word and word.code == 0 for word in words)

    def leads(self, beat: Beat) -> bool:
        """Whether the rank of this beat is the command itself, and not started by it."""
        return beat.pid == self._leader.pid

    def _place(self, rank: int, beat: Beat) -> None:
        """Know a rank for one of this attempt's, or for another machine's."""
        if rank in self._processes or rank in self._elsewhere:
            return
        process = beat.process()
        if process and _mark_of(process) == self._mark:
            self._processes[rank] = process
        elif process or beat.host != socket.gethostname():
            self._elsewhere.add(rank)

    def end(self, grace_seconds: float) -> None:
        """SIGTERM to the ranks, and SIGKILL to all that runs after the grace; raises RunError for what outlives that, too.

        torchrun gets no SIGTERM, at which it prints a traceback: it ends when its ranks do.
        """
        ranks = set(self._processes.values()) or {self._leader}
        if grace_seconds:
            for process in ranks:
                _send(process, signal.SIGTERM)
            _wait({self._leader, *ranks}, grace_seconds)
        _kill({self._leader, *ranks, *_started_for(self.run)}, self.run)
        self._leader.poll()


def forget(run: RunFolder) -> None:
    """Take away what the ranks of an earlier attempt have said, once they are ended; to be called for all machines by the first."""
    for path in (*folder(run).glob("rank-*"), *folder(run).glob(_asked_file(run).name)):
        path.unlink()


def forget_ranks(run: RunFolder, ranks: Iterable[int]) -> None:
    """Take away what these ranks of an earlier attempt have said, once they are ended: this machine's, which may have spoken since."""
    for rank in ranks:
        beat_file(run, rank).unlink(missing_ok=True)


def asked_elsewhere(run: RunFolder) -> bool:
    """Whether a supervisor was asked to stop ranks that it cannot reach: who started them looks here."""
    return _asked_file(run).exists()


def end_leftovers(run: RunFolder) -> None:
    """Kill the ranks of a supervisor that was itself killed, should they have been stopped just then and could not notice.

    To be called by who holds the run's lock. They are known by the mark in their environment.
    """
    _kill(set(_started_for(run)), run)


def _started_for(run: RunFolder) -> Iterator[psutil.Process]:
    """What was started for this run, directly or by its ranks: the mark in its environment stays, whatever session or parent it has now."""
    wanted = mark(run)
    for process in psutil.process_iter():
        if process.pid != os.getpid() and _mark_of(process) == wanted:
            yield process


def _asked_file(run: RunFolder) -> Path:
    return folder(run) / "asked"


def _mark_of(process: psutil.Process) -> str:
    """The mark of the run that a process was started for; empty for one that was started for none, is gone, or another user's."""
    try:
        return process.environ().get(SUPERVISOR, "").partition(" ")[2]
    except psutil.Error:
        return ""


def _kill(processes: set[psutil.Process], run: RunFolder) -> None:
    for process in processes:
        _send(process, signal.SIGKILL)
    if left := _wait(processes, SECONDS_TO_DIE):
        change = "it waits in the kernel for a disk or a driver: mend that, or start the machine anew"
        raise RunError(f"process {left[0].pid} of this run does not end, even by SIGKILL", where=str(run.path), change=change)


def _wait(processes: set[psutil.Process], seconds: float) -> list[psutil.Process]:
    """What still runs after so many seconds. A zombie does not: the parent of a rank may be slow to read its exit code, or never do."""
    end = time.monotonic() + seconds
    while (left := [process for process in processes if _state(process) != GONE]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def _state(process: psutil.Process) -> str:
    """A number that another process has now is gone, and so is one that only waits for its parent to read its exit code."""
    try:
        state: str = process.status() if process.is_running() else GONE
    except psutil.NoSuchProcess:
        return GONE
    return GONE if state == psutil.STATUS_ZOMBIE else state


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return

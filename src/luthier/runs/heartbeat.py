"""Signs of life: what each rank of a run is doing and since when, and how it can be asked where it stands.

A rank writes `heartbeats/rank-0.json`, in place and without waiting for the disk; readers bear a file that is torn.
"""

import faulthandler
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Protocol, Self

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.core.errors import LuthierError, RunError
from luthier.core.signals import Interrupted
from luthier.runs.process import Named
from luthier.runs.store import RunFolder

Phase = Literal["loading", "rehearsing", "computing", "waiting", "validating", "scoring", "saving"]
"""What a rank is doing. `waiting` is inside a collective: for other ranks, and so never the cause of a standstill."""

SECONDS_BETWEEN = 0.2
"""A beat of the same phase and step is written at most this often."""
STEPS_REMEMBERED = 31
WIDTH = 512
"""Bytes that a beat takes at least, filled with blanks: a shorter one leaves nothing of a longer one behind it."""
SUPERVISOR = "LUTHIER_SUPERVISOR"
"""The environment variable by which a rank knows whose end is its own, the process id, and after a blank the mark of its run folder."""
STACK_SIGNAL = signal.SIGUSR2
SECONDS_BETWEEN_LOOKS = 1.0
"""How long a rank may outlive its supervisor."""


class LastWords(BaseModel):
    """How a rank ended, in its own words: exit code and error. A rank that was killed has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: int
    kind: str = ""
    what: str = ""
    where: str = ""
    change: str = ""

    @classmethod
    def of(cls, error: BaseException | None) -> Self:
        """The words for what a rank raised."""
        match error:
            case None:
                return cls(code=0)
            case LuthierError():
                words = {"what": error.what, "where": error.where, "change": error.change}
                return cls(code=error.exit_code, kind=type(error).__name__, **words)
            case SystemExit():
                return cls(code=error.code if isinstance(error.code, int) else int(bool(error.code)))
            case Interrupted():
                return cls(code=error.exit_code)
            case KeyboardInterrupt():
                return cls(code=128 + signal.SIGINT)
        return cls(code=1, kind=type(error).__name__, what=RunError(str(error)).what)  # without secrets, and printable

    @property
    def error(self) -> LuthierError | None:
        """The error again, where it was one of Luthier's."""
        known = {kind.__name__: kind for kind in _kinds(LuthierError)}
        return known[self.kind](self.what, where=self.where, change=self.change) if self.kind in known else None


class Beat(BaseModel):
    """One sign of life. `started` tells the process from a later one of the same number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=0)]
    pid: Annotated[int, Field(gt=0)]
    host: str
    started: float
    phase: Phase
    step: int
    time: float
    usual_seconds: float
    """Of a step: the median of recent ones; 0 before there are two."""
    last_words: LastWords | None = None
    """Of a rank that has ended, in this phase and step."""

    def process(self) -> psutil.Process | None:
        """The process that wrote this, if it lives and is on this machine."""
        return Named(pid=self.pid, host=self.host, started=self.started).find()


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds that a rank may show no sign of life, by what it is doing; never less than some times its usual step."""

    steps: float = 10.0
    usual: float = 60.0
    first_step: float = 600.0
    """Kernels are built and chosen in it."""
    phases: Mapping[Phase, float] = field(
        # Without a beat in between: a base of 140 GB comes over the network at 100 MB/s in 1,400 s; the worst case is tried with fresh
        # kernels; a task's answers are generated; a checkpoint is flushed to a busy disk. Validation beats for each micro batch.
        default_factory=lambda: {"loading": 1800.0, "rehearsing": 900.0, "scoring": 1800.0, "saving": 900.0}
    )
    grace: float = 3.0
    """Between SIGTERM and SIGKILL, when others have failed: they could save nothing that they agree on."""
    back_off: float = 5.0
    """Before the first restart; twice as long before each further one, at most a minute."""

    def of(self, beat: Beat) -> float:
        """For a rank with this last beat."""
        usual = self.usual if beat.usual_seconds else self.first_step
        return max(self.phases.get(beat.phase, usual), self.steps * beat.usual_seconds)


class Heart(Protocol):
    """Where a rank says what it is doing."""

    waited_seconds: float
    """For other ranks, in all."""

    def beat(self, phase: Phase, step: int) -> None:
        """It does this, in this step."""
        ...

    def again(self) -> None:
        """It still does what it did."""
        ...


class Unheard:
    """The heart of a process that nobody watches."""

    waited_seconds = 0.0

    def beat(self, phase: Phase, step: int) -> None:
        """Nobody hears it."""

    def again(self) -> None:
        """Nobody hears it."""


class Heartbeat:
    """A rank's own: `with Heartbeat(run, rank) as heart: …; heart.beat("computing", step)`. What ends the context is its last words.

    To be made once the rank can answer signals: from its first beat on they are passed on to it.
    """

    def __init__(self, run: RunFolder, rank: int) -> None:
        folder(run).mkdir(exist_ok=True)
        self._file = os.open(beat_file(run, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._who = {"rank": rank, **asdict(Named.of(os.getpid()))}
        self.waited_seconds = 0.0
        self._durations: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._phase: Phase = "loading"
        self._step, self._step_began = 0, time.monotonic()
        self._width, self._written = WIDTH, 0.0
        self._write(self._step_began, None)

    def beat(self, phase: Phase, step: int) -> None:
        """Say what the rank is doing. 0.2 µs; 9 µs where phase or step is new or the last beat is 0.2 s old (2026-11-20, Zen 5)."""
        now = time.monotonic()
        if step != self._step:
            if self._step and step == self._step + 1:
                self._durations.append(now - self._step_began)
            self._step_began = now
        elif phase == self._phase and now - self._written < SECONDS_BETWEEN:
            return
        self._phase, self._step = phase, step
        self._write(now, None)

    def again(self) -> None:
        """Say that it still does what it did: between micro batches."""
        self.beat(self._phase, self._step)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While it is open, the rank waits for others; after it, it does what it did before. If it fails, it was waiting to the last."""
        phase, began = self._phase, time.monotonic()
        self.beat("waiting", self._step)
        yield
        self.waited_seconds += time.monotonic() - began
        self.beat(phase, self._step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):  # a full disk: what ended the rank is more than how it says so
            self._write(time.monotonic(), LastWords.of(error))
        os.close(self._file)

    def _write(self, now: float, last_words: LastWords | None) -> None:
        usual = sorted(self._durations)[len(self._durations) // 2] if self._durations else 0.0
        beat = Beat(**self._who, phase=self._phase, step=self._step, time=time.time(), usual_seconds=usual, last_words=last_words)
        text = beat.model_dump_json().encode()
        self._width = max(self._width, len(text))
        os.pwrite(self._file, text.ljust(self._width), 0)
        self._written = now


def mark(run: RunFolder) -> str:
    """Which folder and node this is, on this machine: a path may be another one in another container, and one folder have several."""
    found = run.path.stat()
    return f"{found.st_dev}:{found.st_ino}:{run.node}"


def folder(run: RunFolder) -> Path:
    """Where a run's heartbeats are."""
    return run.path / "heartbeats"


def beat_file(run: RunFolder, rank: int) -> Path:
    """The file of a rank's newest beat."""
    return folder(run) / f"rank-{rank}.json"


def stack_file(run: RunFolder, rank: int) -> Path:
    """Where a rank that listens writes its Python stack when it is asked by SIGUSR2."""
    return folder(run) / f"rank-{rank}.stack"


def beats(run: RunFolder) -> dict[int, Beat]:
    """The newest beat of each rank; a torn file is left out, and whole at the next look."""
    found = {}
    for path in folder(run).glob("rank-*.json"):
        try:
            beat = Beat.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            continue
        found[beat.rank] = beat
    return found


def listen(run: RunFolder, rank: int) -> None:
    """From now on SIGUSR2 makes this process write the Python stack of all its threads, and it ends when its supervisor is gone.

    To be called once by a process that is a rank, before anything slow. The stack is written by a signal handler in C, so a process
    that waits in a library or a collective answers, too. Four do not: one that is stopped (SIGSTOP), one in an uninterruptible sleep (a
    dead disk or driver), a thread that is no Python thread (CUDA's, NCCL's), and a process that was forked from this one and then ran
    another program. A fork that did not writes into the same file. On a GPU the line shown is the one that waits for a kernel, not the one
    that started it.
    """
    folder(run).mkdir(exist_ok=True)
    faulthandler.register(STACK_SIGNAL, file=stack_file(run, rank).open("w"), all_threads=True)  # the file stays open with the process
    end_with_supervisor()


def end_with_supervisor() -> None:
    """From now on this process ends when its supervisor is gone, if it has one; for a rank, and for what starts ranks and stays."""
    if supervisor := os.environ.get(SUPERVISOR):
        threading.Thread(target=_end_with, args=[int(supervisor.partition(" ")[0])], name="supervisor's end", daemon=True).start()


def _kinds(kind: type[LuthierError]) -> Iterator[type[LuthierError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


def _end_with(supervisor: int) -> None:
    """End this process when the supervisor is no longer above it: killed, it cannot end its ranks, which would write on.

    At once and without a save, as if the rank had been killed, too: the folder belongs to whoever starts the run again.
    """
    while supervisor in [process.pid for process in psutil.Process().parents()]:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.write(2, f"process {os.getpid()} ends: its supervisor, process {supervisor}, is gone\n".encode())
    os._exit(1)

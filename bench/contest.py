"""Workers as processes, started one after the other and then let run in turns, A B C A B C …, one at a time."""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from bench.protocol import Files, Task
from bench.results import Counted, Entry, Round
from bench.settings import Allocator, Setting, allocating
from luthier.core.errors import UsageError

ROOT = Path(__file__).parents[1]
SEED = 1
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
OF_ALLOCATORS = ("LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES", "_RJEM_MALLOC_CONF")
"""Beginnings of the names that allocators read: what the caller's environment says is not handed on."""

FloorOf = Callable[[Setting, Sequence[Sequence[int]], Mapping[str, Any]], float]
"""Least operations of an epoch: of a setting, the rows of its steps where it told them, and its resolved values."""


class WorkerEnded(Exception):
    """A worker ended, or said nothing for too long; the text is the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What all contestants have in common."""

    files: Files
    batch: int
    dropout: float
    device: Literal["cpu", "cuda"]
    work: Path
    rounds: int
    variables: Mapping[str, str]
    """Of everyone's environment, before a setting's own."""
    allocator: Allocator
    """Everyone's."""
    patience_seconds: float
    floor_of: FloorOf
    told: Callable[[str], None]


class Worker:
    """A contestant's process and the pipes to it."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, cwd=ROOT, env=dict(variables)
            )
        self._heard = b""

    def hear(self, patience_seconds: float) -> dict[str, Any]:
        """The next message; raises WorkerEnded."""
        pipe = self._process.stdout
        if pipe is None:
            raise WorkerEnded("it has no pipe")
        deadline = time.monotonic() + patience_seconds
        while b"\n" not in self._heard:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise WorkerEnded(f"nothing heard for {patience_seconds:.0f} s")
            read = os.read(pipe.fileno(), 1 << 16)
            if not read:
                raise WorkerEnded(self._last_words())
            self._heard += read
        line, _, self._heard = self._heard.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def say(self, word: str) -> None:
        """`go`, or anything else to end it."""
        pipe = self._process.stdin
        if pipe is None:
            raise WorkerEnded("it has no pipe")
        try:
            pipe.write(f"{word}\n".encode())
            pipe.flush()
        except BrokenPipeError as error:
            raise WorkerEnded(self._last_words()) from error

    def end(self) -> None:
        """Ask it to leave, and make it leave."""
        try:
            self.say("quit")
            self._process.wait(timeout=20)
        except (WorkerEnded, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(timeout=20)

    @property
    def processor_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    @property
    def peak_bytes(self) -> int:
        """The most resident memory it ever had (VmHWM)."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    def _last_words(self) -> str:
        return " / ".join(self._log.read_text(errors="replace").splitlines()[-3:])[-600:] or "its log is empty"


@dataclass(slots=True, kw_only=True)
class Runner:
    """A contestant with what was measured of it so far."""

    setting: Setting
    worker: Worker
    account: Mapping[str, Any] = field(default_factory=dict)
    first_step_seconds: float = 0.0
    peak_bytes: int = 0
    device_peak_bytes: int = 0
    rounds: list[Round] = field(default_factory=list)
    failed: str = ""

    def entry(self) -> Entry:
        """As it stands in results.json."""
        counted = {key: self.account[key] for key in ("rows", "tokens", "supervised", "digest") if key in self.account}
        return Entry(
            name=self.setting.name,
            peer=bool(self.setting.environment),
            whole=self.setting.whole,
            variables=dict(self.setting.variables),
            options=dict(self.setting.options),
            versions=self.account.get("versions", {}),
            resolved=self.account.get("resolved", {}),
            counted=Counted(**counted) if counted else None,
            first_step_seconds=self.first_step_seconds,
            peak_bytes=self.peak_bytes,
            device_peak_bytes=self.device_peak_bytes,
            rounds=tuple(self.rounds),
            failed=self.failed,
        )


def compete(settings: Sequence[Setting], course: Course) -> list[Entry]:
    """Start everyone, run the rounds, end everyone; who fails drops out and is told of."""
    runners: list[Runner] = []
    try:
        for setting in settings:
            _leave_room(runners)
            whole = replace(setting, variables={**allocating(setting, course.allocator), **setting.variables})
            runner = Runner(setting=whole, worker=_start(whole, course))
            runners.append(runner)
            _trying(runner, course, _warm_up)
        for number in range(1, course.rounds + 1):
            for runner in runners:
                _trying(runner, course, _run)
            told = (f"{runner.setting.name} {runner.rounds[-1].seconds:.2f} s" for runner in runners if not runner.failed)
            course.told(f"round {number} of {course.rounds}: {', '.join(told)}")
    finally:
        for runner in runners:
            runner.worker.end()
    return [runner.entry() for runner in runners]


def environment_python(setting: Setting, work: Path) -> Path:
    """The interpreter of a contestant's environment; the running one is Luthier's."""
    return work / "envs" / setting.environment / "bin" / "python" if setting.environment else Path(sys.executable)


def _convert(setting: Setting, course: Course) -> None:
    """Make what a peer needs once for each model: only LitGPT has a checkpoint format of its own."""
    model, target = course.files.model, Path(f"{course.files.model}-litgpt")
    if setting.environment == "litgpt" and not target.exists():
        python = environment_python(setting, course.work)
        subprocess.run([python, "-m", "bench.peers.litgpt_convert", model, target], cwd=ROOT, check=True, timeout=600)


def _leave_room(runners: Sequence[Runner]) -> None:
    """Refuse one more while the largest so far would not fit again: the kernel would end some process, and not ask whose."""
    largest = max((runner.peak_bytes for runner in runners), default=0)
    left = psutil.virtual_memory().available
    if left < largest:
        names = ", ".join(runner.setting.name for runner in runners)
        what = f"{left / 1e9:.1f} GB of memory are left beside {names}, the largest of which took {largest / 1e9:.1f} GB"
        raise UsageError(what, change="name fewer --peers, and the others in a contest of their own")


def _start(setting: Setting, course: Course) -> Worker:
    _convert(setting, course)
    scratch = course.work / "scratch" / setting.name.replace(" ", "-").replace("/", "-")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    task = Task(
        files=course.files,
        scratch=str(scratch),
        batch=course.batch,
        epochs=course.rounds + 2,  # the warm-up, and one that is never begun: what comes at the very end is no training
        dropout=course.dropout,
        seed=SEED,
        device=course.device,
        options=setting.options,
    )
    common = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **course.variables}
    common |= {} if task.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith(OF_ALLOCATORS)}
    path = {} if setting.environment else {"PYTHONPATH": str(ROOT / "src")}
    command = [str(environment_python(setting, course.work)), "-m", setting.worker, task.to_json()]
    return Worker(command, inherited | common | path | dict(setting.variables), scratch / "log.txt")


def _trying(runner: Runner, course: Course, what: Callable[[Runner, Course], None]) -> None:
    """Do it with a contestant that is still there."""
    if runner.failed:
        return
    try:
        what(runner, course)
    except WorkerEnded as ended:
        runner.failed = str(ended)
        course.told(f"{runner.setting.name} drops out: {ended}")


def _warm_up(runner: Runner, course: Course) -> None:
    """From the start of the process to the end of its first epoch."""
    began = time.perf_counter()
    runner.worker.hear(course.patience_seconds)
    runner.first_step_seconds = time.perf_counter() - began
    runner.worker.hear(course.patience_seconds)
    runner.account = runner.worker.hear(course.patience_seconds)
    runner.peak_bytes = runner.worker.peak_bytes
    course.told(f"{runner.setting.name}: first step after {runner.first_step_seconds:.1f} s, peak {runner.peak_bytes / 1e9:.1f} GB")


def _run(runner: Runner, course: Course) -> None:
    """One epoch."""
    busy, own = _busy_seconds(), runner.worker.processor_seconds
    began = time.perf_counter()
    runner.worker.say("go")
    message = runner.worker.hear(course.patience_seconds)
    seconds = time.perf_counter() - began
    own = runner.worker.processor_seconds - own
    runner.peak_bytes = runner.worker.peak_bytes
    runner.device_peak_bytes = message["device_peak_bytes"]
    runner.rounds.append(
        Round(
            seconds=seconds,
            processor_seconds=own,
            others_seconds=max(0.0, _busy_seconds() - busy - own),
            floor_operations=course.floor_of(runner.setting, message["order"], runner.account["resolved"]),
        )
    )


def _busy_seconds() -> float:
    """Processor seconds that the whole machine has spent, what its host took away included."""
    user, nice, system, _, _, *interrupts_and_stolen = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return sum((user, nice, system, *interrupts_and_stolen)) / CLOCK_TICKS

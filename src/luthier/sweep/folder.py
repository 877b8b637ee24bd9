"""The folder of a sweep, beside those of the runs: what it has spent, which trials ended badly, what happened. Its trials are runs."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from luthier.core import files, jsonl
from luthier.core.errors import RunError, UsageError
from luthier.recipe.load import training_text
from luthier.runs.store import RunFolder, runs_root
from luthier.sweep.budget import Spent
from luthier.sweep.space import Trial

STATE = "sweep.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A trial that is being trained: its run's folder, since when, and dollars a second."""

    run: str
    since: float
    price: float

    def spent(self, until: float) -> Spent:
        """What it took."""
        seconds = max(0.0, until - self.since)
        return Spent(seconds=seconds, dollars=seconds * self.price)

    @property
    def last_heard(self) -> float:
        """When it last wrote something."""
        run = RunFolder(Path(self.run))
        return max((path.stat().st_mtime for path in (run.metrics, run.events) if path.exists()), default=self.since)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """sweep.json."""

    identity: str
    """sha256 of recipe, trials and halving: the same sweep goes on, whatever its budget is now."""
    spent: Spent = field(default_factory=Spent)
    failed: Mapping[str, str] = field(default_factory=dict)
    """Errors that ended a trial, by its name: it is not tried again."""
    turn: Turn | None = None


@dataclass(slots=True, kw_only=True)
class SweepFolder:
    """`sweeps/NAME`: sweep.json, events.jsonl, table.json."""

    path: Path
    state: State

    @property
    def table(self) -> Path:
        """What came out, as `--json` prints it."""
        return self.path / "table.json"

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event, with the time."""
        with files.told("events.jsonl", self.path):
            jsonl.append(self.path / "events.jsonl", {"event": kind, "time": time.time(), **fields})

    def give_up(self, trial: Trial, why: str) -> None:
        """Let a trial be, and go on with the others."""
        self.event("failed", trial=trial.name, why=why)
        self._keep(replace(self.state, failed={**self.state.failed, trial.name: why}))

    @contextmanager
    def turn(self, run: RunFolder, price: float) -> Iterator[None]:
        """Within, a trial is trained; what it takes is counted, also if this process is killed."""
        self._keep(replace(self.state, turn=Turn(run=str(run.path), since=time.time(), price=price)))
        try:
            yield
        finally:
            self.settle(time.time())

    def settle(self, until: float) -> None:
        """Count what the trial whose turn it was has taken."""
        if turn := self.state.turn:
            self._keep(replace(self.state, spent=self.state.spent + turn.spent(until), turn=None))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The sweep for this process; raises UsageError where another has it. A turn that was killed is counted up to its last sign."""
        with files.told("the lock", self.path):
            file = (self.path / "lock").open("a", encoding="utf-8")
        with file:
            try:
                files.lock(file, wait=False)
            except BlockingIOError:
                change = "wait until it ends, or stop it"
                raise UsageError("this sweep is under way in another process", where=str(self.path), change=change) from None
            self.state = _read(self.path)
            if self.state.turn:
                self.settle(self.state.turn.last_heard)
            yield

    def _keep(self, state: State) -> None:
        with files.told(STATE, self.path):
            files.write_json(self.path / STATE, asdict(state))
        self.state = state


def identity_of(recipe_text: str, trials: tuple[Trial, ...], *, halving: bool) -> str:
    """`State.identity`."""
    parts = (training_text(recipe_text), f"halving: {halving}", *(trial.told for trial in trials))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def open_sweep(name: str, identity: str) -> SweepFolder:
    """The sweep's folder: the first of NAME, NAME-2 … that is free, or is of this one."""
    root, number = runs_root().parent / "sweeps", 1
    while ((path := root / (name if number == 1 else f"{name}-{number}")) / STATE).exists() and _read(path).identity != identity:
        number += 1
    folder = SweepFolder(path=path, state=State(identity=identity))
    if not (path / STATE).exists():
        with files.told("the folder of a sweep", path):
            path.mkdir(parents=True, exist_ok=True)
            files.write_json(path / STATE, asdict(folder.state))
        folder.event("begun")
    return folder


def _read(path: Path) -> State:
    try:
        return TypeAdapter(State).validate_json((path / STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{STATE} is missing, or is not one", where=str(path), change="move the folder away: its runs are kept") from error

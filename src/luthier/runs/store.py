"""The run folder: who writes what where. Readers need nothing else to know a run."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.core import files, jsonl
from luthier.core.errors import UsageError
from luthier.recipe.schema import RUN_NAME


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`runs/NAME`: paths and the few ways to write into it."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def recipe(self) -> Path:
        """The recipe as resolved."""
        return self.path / "recipe.yaml"

    @property
    def data(self) -> Path:
        """The summary of the prepared data (`DataSummary`)."""
        return self.path / "data.json"

    @property
    def plan(self) -> Path:
        """Steps, and the values that `auto` was resolved to."""
        return self.path / "plan.json"

    @property
    def environment(self) -> Path:
        """Versions, hardware, hashes, command."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step or validation."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """started, saved, resumed, stopped, finished."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of `step-000050/` checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The final adapter (PEFT format), or the whole model after full fine-tuning."""
        return self.path / "adapter"

    @property
    def verdict(self) -> Path:
        """The decision and its reasons."""
        return self.path / "verdict.json"

    @property
    def pid(self) -> Path:
        """The process that trains the run; there while it does, and after it was killed."""
        return self.path / "pid"

    def evaluation(self, name: str) -> Path:
        """Folder of one evaluation's predictions.jsonl and scores.json."""
        return self.path / "evaluations" / name

    def checkpoint(self, step: int) -> Path:
        """Folder of one checkpoint."""
        return self.checkpoints / f"step-{step:06d}"

    def pointer(self, which: Literal["best", "latest"]) -> Path:
        """best.json or latest.json: `{step, …}`."""
        return self.path / f"{which}.json"

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event, with the time."""
        jsonl.append(self.events, {"event": kind, "time": time.time(), **fields})

    def metric(self, record: Mapping[str, Any]) -> None:
        """Append one record to metrics.jsonl."""
        jsonl.append(self.metrics, record)

    @property
    def finished(self) -> bool:
        """Whether training came to its end and the adapter is in place."""
        if not (self.adapter.exists() and self.events.exists()):
            return False
        return any(record["event"] == "finished" for record in jsonl.records(self.events))


def runs_root() -> Path:
    """The folder of all runs: `runs` under the current folder, or LUTHIER_RUNS."""
    return Path(os.environ.get("LUTHIER_RUNS", "runs")).absolute()


def prepared_root() -> Path:
    """The folder of all prepared data, beside the runs'."""
    return runs_root().parent / "prepared"


def find(name: str) -> RunFolder:
    """The run of this name, or a folder given by path; raises UsageError where there is none."""
    path = runs_root() / name if RUN_NAME.fullmatch(name) else Path(name)
    if not (path / "recipe.yaml").exists():
        known = sorted(item.parent.name for item in runs_root().glob("*/recipe.yaml"))
        raise UsageError(f"no run called {name!r} in {runs_root()}", change=f"runs there: {', '.join(known) or 'none yet'}")
    return RunFolder(path)


def open_or_create(name: str, recipe_text: str, original: Path) -> RunFolder:
    """The folder for this recipe: `NAME` if it is new or was made by the same recipe, else the first of NAME-2, NAME-3 … that is.

    `recipe_text` is the resolved recipe; equality of its text is what "the same recipe" means.
    """
    root = runs_root()
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = RunFolder(root / (name if number == 1 else f"{name}-{number}"))
        if not folder.recipe.exists():
            folder.path.mkdir(exist_ok=True)
            shutil.copyfile(original, folder.path / "recipe.original")
            files.write(folder.recipe, recipe_text)
            return folder
        if folder.recipe.read_text() == recipe_text:
            return folder
        number += 1


@contextmanager
def alone(run: RunFolder) -> Iterator[None]:
    """The run for this process alone; raises UsageError where another has it. A killed process lets go of it."""
    with (run.path / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = run.pid.read_text().strip() if run.pid.exists() else "that has just begun"
            change = "wait until it ends, or give this run another name"
            raise UsageError(f"run {run.name} is being trained by process {holder}", where=str(run.path), change=change) from None
        files.write(run.pid, f"{os.getpid()}\n")
        try:
            yield
        finally:
            run.pid.unlink(missing_ok=True)

"""The run folder: who writes what where. Readers need nothing else to know a run."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from luthier.core import files, jsonl
from luthier.core.errors import RecipeError, RunError, UsageError
from luthier.core.redact import redacted
from luthier.recipe.load import load, training_text
from luthier.recipe.schema import RUN_NAME, Recipe
from luthier.runs.process import Named

OTHER = "it is not what the run began with"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`runs/NAME`: paths and the few ways to write into it."""

    path: Path
    read_only: bool = False
    """Events and metrics are dropped: another rank writes them."""
    node: int = 0
    """Which of the machines that share the folder this is; each has a log, pid, lock and job of its own."""

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
    def ranks(self) -> Path:
        """One JSON object per rank and ten steps, where there are several ranks (`luthier.train.record.RankLine`)."""
        return self.path / "ranks.jsonl"

    @property
    def validations(self) -> Path:
        """Folder of each validation's losses row by row."""
        return self.path / "validations"

    def validation(self, step: int) -> Path:
        """One of them (`luthier.watch.rows`)."""
        return self.validations / f"step-{step:06d}.npy"

    def answers(self, step: int) -> Path:
        """Folder of what a task that chooses the best was answered at one of them (`luthier.evaluate.report`)."""
        return self.validations / f"step-{step:06d}"

    @property
    def rollouts(self) -> Path:
        """Folder of the answers that were drawn and rewarded (`luthier.rl.record`)."""
        return self.path / "rollouts"

    def rollout(self, step: int) -> Path:
        """Those of one step, a line for each."""
        return self.rollouts / f"step-{step:06d}.jsonl"

    def tokens(self, step: int) -> Path:
        """The same as tokens, where several updates learn from them and a checkpoint may go on in their middle."""
        return self.rollouts / f"tokens-{step:06d}.json"

    @property
    def validated_steps(self) -> tuple[int, ...]:
        """The steps of those that are there, in order."""
        return tuple(sorted(int(path.stem[5:]) for path in self.validations.glob("step-*.npy") if path.stem[5:].isdecimal()))

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
    def merged(self) -> Path:
        """The final adapter in its base's weights, where it was exported so."""
        return self.path / "merged"

    @property
    def verdict(self) -> Path:
        """The decision and its reasons."""
        return self.path / "verdict.json"

    @property
    def looks(self) -> Path:
        """What was decided about before (`luthier.runs.looks`)."""
        return self.path / "looks.jsonl"

    @property
    def ratings(self) -> Path:
        """What people said of its answers (`luthier.review.store`)."""
        return self.path / "ratings.sqlite"

    @property
    def report(self) -> Path:
        """The run as one page, to send to somebody."""
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        """What the ranks' processes and their libraries print."""
        return self.path / self._own("log.txt")

    @property
    def progress(self) -> Path:
        """What rank 0 tells the process that shows it (`luthier.core.progress.Told`); there while it does."""
        return self.path / "progress.jsonl"

    @property
    def pid(self) -> Path:
        """The process that trains the run; there while it does, and after it was killed."""
        return self.path / self._own("pid")

    @property
    def lock(self) -> Path:
        """Held by the process that trains the run, and names it; it stays when the process is gone."""
        return self.path / self._own("lock")

    @property
    def job(self) -> Path:
        """What `luthier launch` submitted (`luthier.launch.backend.Job`)."""
        return self.path / self._own("job.json")

    @property
    def control(self) -> Path:
        """What the run is asked from outside (`luthier.runs.control`); there until it has obeyed."""
        return self.path / "control"

    @property
    def until(self) -> Path:
        """The step after which it is asked to leave off (`luthier.runs.control`); there while a sweep wants no more of it."""
        return self.path / "until"

    @property
    def identity(self) -> str:
        """sha256 of the recipe, but for where it is trained: what belongs to this run and to no other; `none` without a recipe."""
        return identity_of(self.recipe_text) if self.recipe.exists() else "none"

    @property
    def recipe_text(self) -> str:
        """recipe.yaml as it lies there: what is no text in it stands as �, so that a damaged file is one that differs."""
        return self.recipe.read_bytes().decode("utf-8", "replace")

    @property
    def began_with(self) -> str:
        """The identity that its recipe had when it began, by its events; `unknown` where they do not tell."""
        told = (record.get("recipe") for record in jsonl.salvage(self.events).records if record.get("event") == "begun")
        return next((identity for identity in told if isinstance(identity, str)), "unknown")

    @property
    def is_new(self) -> bool:
        """Whether no run has begun in it, or it is not there yet."""
        return not self.recipe.exists() and self.began_with == "unknown"

    def is_of(self, identity: str) -> bool:
        """Whether it began with the recipe of this identity, whatever its recipe.yaml says now."""
        known = self.began_with
        return identity == (self.identity if known == "unknown" else known)

    def begin(self) -> None:
        """Note which recipe this run is of, once, so that a recipe.yaml that is damaged later is known to be."""
        if self.began_with == "unknown":
            self.event("begun", recipe=self.identity)

    def evaluation(self, name: str) -> Path:
        """Folder of one evaluation's predictions.jsonl and scores.json."""
        return self.path / "evaluations" / name

    def checkpoint(self, step: int) -> Path:
        """Folder of one checkpoint."""
        return self.checkpoints / f"step-{step:06d}"

    @property
    def saved(self) -> list[Path]:
        """Its checkpoints, the newest first. What a save that was killed left is none, nor what was found damaged."""
        return [self.checkpoint(step) for step in self.saved_steps]

    @property
    def saved_steps(self) -> tuple[int, ...]:
        """Their steps."""
        names = (path.name for path in self.checkpoints.glob("step-*"))
        return tuple(sorted((int(name[5:]) for name in names if re.fullmatch(r"step-\d{6,}", name)), reverse=True))

    def pointer(self, which: Literal["best", "latest"]) -> Path:
        """best.json or latest.json: `{step, …}`."""
        return self.path / f"{which}.json"

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event, with the time, what came from elsewhere redacted; raises DiskError where it cannot be written."""
        if self.read_only:
            return
        with files.told(self.events.name, self.path):
            jsonl.append(self.events, {"event": kind, "time": time.time(), **redacted(fields)})

    def metric(self, record: Mapping[str, Any]) -> None:
        """Append one record to metrics.jsonl; raises DiskError where it cannot be written: a run that is not recorded does not go on."""
        if self.read_only:
            return
        with files.told(self.metrics.name, self.path):
            jsonl.append(self.metrics, record)

    @property
    def finished(self) -> bool:
        """Whether training came to its end and the adapter is in place."""
        return self.adapter.exists() and any(record.get("event") == "finished" for record in jsonl.salvage(self.events).records)

    def _own(self, name: str) -> str:
        """`log.txt` of the first node, `log-1.txt` of the second."""
        stem, dot, suffix = name.partition(".")
        return f"{stem}-{self.node}{dot}{suffix}" if self.node else name


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
        if RunFolder(path).began_with != "unknown":
            raise _damaged(RunFolder(path), "it is gone")
        known = sorted(item.parent.name for item in runs_root().glob("*/recipe.yaml"))
        raise UsageError(f"no run called {name!r} in {runs_root()}", change=f"runs there: {', '.join(known) or 'none yet'}")
    return RunFolder(path)


def folder_of(name: str, recipe_text: str) -> RunFolder:
    """The folder that this recipe has or would get: the first of NAME, NAME-2, NAME-3 … that is free or was made by the same one.

    `recipe_text` is the resolved recipe. One that differs only in where it is trained is the same (`luthier.recipe.load.training_text`).
    The folder's own recipe.yaml may be damaged, if its events tell that it began with this one; raises RunError where they do not.
    """
    number, identity = 1, identity_of(recipe_text)
    while not ((folder := _numbered(name, number)).is_new or _is_of(folder, identity)):
        number += 1
    return folder


def open_or_create(name: str, recipe_text: str, original: Path) -> RunFolder:
    """The recipe's folder (`folder_of`), with the recipe in it as resolved and as written."""
    root = runs_root()
    with files.told("the folder of runs", root):
        root.mkdir(parents=True, exist_ok=True)
    folder = folder_of(name, recipe_text)
    if folder.is_new:
        with files.told("a run folder", folder.path):
            folder.path.mkdir(exist_ok=True)
            shutil.copyfile(original, folder.path / "recipe.original")
            files.write(folder.recipe, recipe_text)
        folder.begin()
    return folder


def of_recipe(name: str, recipe_text: str) -> RunFolder | Literal["none"]:
    """The folder that `open_or_create` would find for this recipe; nothing is made."""
    number, identity = 1, identity_of(recipe_text)
    while (folder := _numbered(name, number)).path.exists():
        if folder.is_of(identity):
            return folder
        number += 1
    return "none"


def identity_of(recipe_text: str) -> str:
    """`RunFolder.identity` of a run of this resolved recipe."""
    return hashlib.sha256(training_text(recipe_text).encode()).hexdigest()


def own_recipe(run: RunFolder) -> Recipe:
    """The recipe that a run is of; raises RunError where its recipe.yaml is damaged."""
    if run.began_with not in ("unknown", run.identity):
        raise _damaged(run, OTHER)
    try:
        return load(run.recipe).recipe
    except RecipeError as error:
        raise _damaged(run, str(error)) from error


@contextmanager
def alone(run: RunFolder) -> Iterator[None]:
    """The run for this process alone; raises UsageError, which names the process, where another has it.

    The lock is the kernel's and goes with the process: what the file says of a dead one, of one whose number another has got, or of
    another machine that the folder was copied from, holds nobody up. Raises RunError on a file system without locks.
    """
    with files.told("the lock", run.path):
        file = run.lock.open("a+", encoding="utf-8")
    with file:
        try:
            files.lock(file, wait=False)
        except BlockingIOError:
            change = "wait until it ends, or give this run another name"
            raise UsageError(f"run {run.name} is being trained by {_holder(run)}", where=str(run.path), change=change) from None
        with files.told("the lock", run.path):
            file.truncate(0)
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            file.write(jsonl.dumps({**asdict(Named.of(os.getpid())), "since": since}) + "\n")
            file.flush()
            files.write(run.pid, f"{os.getpid()}\n")
        try:
            yield
        finally:
            with suppress(OSError):  # the disk that failed may be why the run ends, and it is the lock that counts
                run.pid.unlink()


def _numbered(name: str, number: int) -> RunFolder:
    """NAME, NAME-2, …"""
    return RunFolder(runs_root() / (name if number == 1 else f"{name}-{number}"))


def _is_of(run: RunFolder, identity: str) -> bool:
    """Whether a run is of the recipe with this identity; raises RunError where its own recipe is damaged and is not known to be this."""
    if run.is_of(identity):
        return True
    if run.began_with == "unknown":
        own_recipe(run)
    elif run.began_with != run.identity:
        raise _damaged(run, OTHER)
    return False


def _damaged(run: RunFolder, why: str) -> RunError:
    change = (
        "train with the recipe that it began with, and it is written anew (recipe.original is the file as it was, environment.json has "
        "the command); or give this run another name, or move the folder away"
    )
    return RunError(f"recipe.yaml of run {run.name} is damaged, or of another version: {why}", where=str(run.path), change=change)


def _holder(run: RunFolder) -> str:
    """Who has the run, as its lock says: `process 12 on host since …`."""
    try:
        said = json.loads(run.lock.read_text(encoding="utf-8"))
        return f"process {said['pid']} on {said['host']} since {said['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock, and has not written it yet
        return "a process that has just begun"

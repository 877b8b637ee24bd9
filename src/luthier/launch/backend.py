"""What every backend does with a run: submit it, say how it stands, where its logs are, and stop it. All else is in the run folder."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict

from luthier.core import files
from luthier.core.errors import RunError
from luthier.recipe.schema import Launch
from luthier.runs.store import RunFolder

On = Literal["local", "torchrun", "slurm", "ray", "modal"]
State = Literal["queued", "running", "over", "unknown"]
"""Of a job, as its host tells: it waits for a machine; it has one; it is no more (the run folder says how it ended); another host knows."""


class Job(BaseModel):
    """A run that was submitted, as runs/NAME/job.json keeps it for whoever looks at it later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    on: On
    id: str
    """The host's own: a process id, Slurm's job id, Modal's function call."""
    host: str
    """Of the machine that it was submitted on; of a process, where it runs."""
    started: float
    """Seconds since 1970: of a process, its start as the kernel tells it; else when it was submitted."""

    def write(self, run: RunFolder) -> None:
        """Keep it in the run folder."""
        with files.told(run.job.name, run.path):
            files.write(run.job, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, run: RunFolder) -> Self | None:
        """The run's newest; None for one that was never submitted. Raises RunError where the file is not one."""
        if not run.job.exists():
            return None
        try:
            return cls.model_validate_json(run.job.read_bytes())
        except ValueError as error:
            raise RunError("is not what `luthier launch` wrote", where=str(run.job), change="remove it") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a backend is asked to do."""

    run: RunFolder
    launch: Launch
    nodes: int = 1
    gpu: str = ""
    """Of the hardware table; empty for a processor, or whatever there is."""
    gpus: int = 0
    """Of each node."""
    timeout_seconds: float | Literal["none"] = "none"
    force: tuple[str, ...] = ()
    """Codes of findings that shall pass."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the command needs besides what is set where it runs; no secrets."""
    files: tuple[Path, ...] = ()
    """Files and folders of this machine that the recipe names."""
    prepared: Path | None = None
    """The prepared rows; None before they are."""

    @property
    def words(self) -> list[str]:
        """The verb that trains, as any other, behind `python`: the recipe is the run folder's own."""
        forced = [word for code in self.force for word in ("--force", code)]
        return ["-P", "-m", "luthier.cli.main", "train", str(self.run.recipe), *forced]

    @property
    def command(self) -> list[str]:
        """With this machine's Python."""
        return [sys.executable, *self.words]

    def shell(self, *before: str) -> str:
        """The command, behind its environment and the words `before`, as a shell reads it."""
        assigned = (f"{name}={shlex.quote(value)}" for name, value in self.environment.items())
        return " ".join([*assigned, shlex.join([*before, *self.command])])


class Backend(Protocol):
    """One host of runs."""

    def text(self, order: Order) -> str:
        """What `submit` would run, to the letter; nothing is touched."""
        ...

    def submit(self, order: Order) -> Job:
        """Hand it over; raises LuthierError where the host does not take it."""
        ...

    def status(self, run: RunFolder, job: Job) -> State:
        """How the host says it stands."""
        ...

    def logs(self, run: RunFolder, job: Job) -> tuple[Path, ...]:
        """The files that hold what its processes print, as new as they can be had."""
        ...

    def stop(self, run: RunFolder, job: Job, *, now: bool) -> None:
        """Ask it to save and end, or end it `now`; returns at once. Raises UsageError where it is over, or cannot be reached from here."""
        ...

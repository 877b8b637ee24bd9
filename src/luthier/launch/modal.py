"""Modal: a rented container with the recipe's GPU, time limit and a volume for runs. The only file that imports modal, inside functions.

The container trains the run's folder on the volume as any machine does. After each save the volume is committed; before the time limit
the run saves and ends, and Modal begins it again: nobody has to. What the run writes is brought back into its folder here by `logs`.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from luthier.core.envfile import NOTHING, read
from luthier.core.errors import RunError, UsageError
from luthier.launch.backend import Job, Order, State
from luthier.launch.container import see_to
from luthier.recipe.load import load
from luthier.recipe.options import MODAL_LONGEST_SECONDS, MODAL_RETRIES, ModalOptions
from luthier.runs.store import RunFolder

if TYPE_CHECKING:
    import modal

MOUNT = "/luthier"
VOLUME = "LUTHIER_VOLUME"
"""The environment variable that tells the container its volume's name."""
SECONDS_TO_SAVE = 300.0
"""Before the time limit, at most a tenth of it."""
GPUS = {"T4", "L4", "A10", "L40S", "A100-40GB", "A100-80GB", "H100", "H200", "B200"}
"""That Modal rents, by the hardware table's names (modal.com/docs/guide/gpu, 2026-11)."""
OWN = {"job.json", "lock", "pid", "progress.jsonl"}
"""Files of a run folder that say something of the machine they are on."""
FILE = 1
"""`modal.types.FileEntryType.FILE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rental:
    """What Modal is asked for."""

    app: str
    gpu: str
    seconds: int
    volume: str
    packages: tuple[str, ...]
    environment: dict[str, str]
    files: tuple[Path, ...]
    """Put at the same place in the container, so that the recipe finds them."""
    secrets: tuple[str, ...]
    """Modal's own, by name."""
    variables: tuple[str, ...]
    """Of the env file, by name."""
    cpus: int | None
    memory_mib: int | None
    region: str | None
    folder: str
    """The run's, in the container."""
    words: tuple[str, ...]
    """That train it, behind `python`."""

    @property
    def seconds_to_train(self) -> float:
        """Until the run is asked to save and end."""
        return self.seconds - min(SECONDS_TO_SAVE, self.seconds / 10)

    def __str__(self) -> str:
        lines = {
            "app": self.app,
            "image": f"debian_slim, Python {_python()}, pip install {shlex.join(self.packages)}",
            "files": ", ".join(map(str, self.files)) or "none",
            "gpu": self.gpu,
            "cpus": self.cpus or "Modal's default",
            "memory": f"{self.memory_mib} MiB" if self.memory_mib else "Modal's default",
            "region": self.region or "any",
            "timeout": f"{self.seconds} s; saves and ends after {self.seconds_to_train:.0f} s",
            "retries": MODAL_RETRIES,
            "volume": f"{self.volume} at {MOUNT}, committed after each save",
            "secrets": ", ".join(self.secrets) or "none",
            "env file": ", ".join(self.variables) or "none",
            "environment": " ".join(f"{name}={value}" for name, value in self.environment.items()),
            "runs": shlex.join(["python", *self.words]),
        }
        return "".join(f"{name}: {value}\n" for name, value in lines.items())


class Modal:
    """`on: modal`."""

    def text(self, order: Order) -> str:
        """What is asked for, line by line; the values of the env file are not shown."""
        return str(rental(order))

    def submit(self, order: Order) -> Job:
        """Copy the run to the volume, and start the app, which goes on without this process."""
        _require()
        import modal

        wanted = rental(order)
        app, function = build(wanted, order)
        upload(modal.Volume.from_name(wanted.volume, create_if_missing=True), order)
        with app.run(detach=True):
            call = function.spawn(wanted.folder, list(wanted.words), wanted.seconds_to_train)
        return Job(on="modal", id=call.object_id, host=socket.gethostname(), started=time.time())

    def status(self, run: RunFolder, job: Job) -> State:
        """By the function's call. Modal does not tell whether a call has a container yet."""
        _require()
        import modal
        import modal.exception as known

        try:
            modal.FunctionCall.from_id(job.id).get(timeout=0)
        except TimeoutError:
            return "running"
        except (known.RemoteError, known.FunctionTimeoutError, known.ExecutionError, known.OutputExpiredError, known.NotFoundError):
            return "over"
        except RuntimeError:  # the container's own
            return "over"
        except known.Error as error:  # of Modal itself, which tells nothing of the run
            raise RunError(f"Modal does not say how the run stands: {error}", where=str(run.path), change="ask again") from error
        return "over"

    def logs(self, run: RunFolder, job: Job) -> tuple[Path, ...]:
        """The run's, brought here with all else that has changed there but checkpoints."""
        _require()
        import modal

        options = ModalOptions.model_validate(load(run.recipe).recipe.launch.options)
        bring(modal.Volume.from_name(options.volume), run)
        return (run.log,)

    def stop(self, run: RunFolder, job: Job, *, now: bool) -> None:
        """Cancel the call, at which the container saves; or end the container."""
        if self.status(run, job) == "over":
            raise UsageError(f"run {run.name} is not running", where=str(run.path))
        import modal

        modal.FunctionCall.from_id(job.id).cancel(terminate_containers=now)


def train_run(folder: str, words: list[str], seconds: float) -> int:
    """What the container runs: the exit code of the training, or TimeIsOver, at which Modal begins it again."""
    import modal

    volume = modal.Volume.from_name(os.environ[VOLUME])

    def keep() -> None:
        try:
            volume.commit()
        except modal.exception.Error as error:
            raise RuntimeError(f"the volume was not committed: {error}") from error

    return see_to(RunFolder(Path(folder)), [sys.executable, *words], seconds=seconds, keep=keep)


def rental(order: Order) -> Rental:
    """What an order asks of Modal; raises UsageError for what it does not have."""
    options = ModalOptions.model_validate(order.launch.options)
    if order.gpu not in GPUS:
        raise UsageError(f"Modal does not rent {order.gpu}", where="launch.gpu", change=f"it rents {', '.join(sorted(GPUS))}")
    seconds = MODAL_LONGEST_SECONDS if order.timeout_seconds == "none" else int(order.timeout_seconds)
    if seconds > MODAL_LONGEST_SECONDS:
        change = f"say at most 24 h, or none: it is begun again up to {MODAL_RETRIES} times"
        raise UsageError(f"Modal ends a function after 24 h, and launch.timeout is {order.launch.timeout}", change=change)
    folder = f"{MOUNT}/runs/{order.run.name}"
    *before, recipe = order.words[: order.words.index(str(order.run.recipe)) + 1]
    after = order.words[len(before) + 1 :]
    return Rental(
        app=f"luthier-{order.run.name}",
        gpu=order.gpu if order.gpus == 1 else f"{order.gpu}:{order.gpus}",
        seconds=seconds,
        volume=options.volume,
        packages=(*_requirements(), *options.packages),
        environment={"LUTHIER_RUNS": f"{MOUNT}/runs", "HF_HOME": f"{MOUNT}/hub", VOLUME: options.volume},
        files=order.files,
        secrets=options.secrets,
        variables=() if order.launch.env_file == NOTHING else tuple(read(Path(order.launch.env_file))),
        cpus=None if options.cpus == "auto" else options.cpus,
        memory_mib=None if options.memory_gb == "auto" else round(options.memory_gb * 1e9 / 2**20),
        region=options.region or None,
        folder=folder,
        words=(*before, f"{folder}/{Path(recipe).name}", "launch.env_file=", *after),
    )


def build(wanted: Rental, order: Order) -> tuple[modal.App, modal.Function[[str, list[str], float], int, int]]:
    """Modal's app and the function in it that trains; nothing is sent."""
    _require()
    import modal

    image = modal.Image.debian_slim(python_version=_python()).pip_install(*wanted.packages).env(wanted.environment)
    image = image.add_local_python_source("luthier", ignore=["**/__pycache__/**"])
    for path in wanted.files:
        image = (image.add_local_dir if path.is_dir() else image.add_local_file)(path, str(path))
    secrets = [modal.Secret.from_name(name) for name in wanted.secrets]
    if order.launch.env_file != NOTHING:
        secrets.append(modal.Secret.from_dict(dict(read(Path(order.launch.env_file)))))
    app = modal.App(wanted.app)
    decorate = app.function(
        image=image,
        gpu=wanted.gpu,
        timeout=wanted.seconds,
        volumes={MOUNT: modal.Volume.from_name(wanted.volume, create_if_missing=True)},
        retries=modal.Retries(max_retries=MODAL_RETRIES, initial_delay=1.0, backoff_coefficient=1.0),
        secrets=secrets,
        cpu=wanted.cpus,
        memory=wanted.memory_mib,
        region=wanted.region,
        single_use_containers=True,
        include_source=False,  # the whole package, with its data, is in the image's files
    )
    return app, decorate(train_run)


class Entry(Protocol):
    """A file or folder of a volume."""

    @property
    def path(self) -> str:
        """From the volume's root."""
        ...

    @property
    def type(self) -> int:
        """FILE, or another."""
        ...

    @property
    def mtime(self) -> int:
        """Seconds since 1970."""
        ...

    @property
    def size(self) -> int:
        """In bytes."""
        ...


class Volume(Protocol):
    """As much of Modal's volume as `bring` needs."""

    def iterdir(self, path: str, *, recursive: bool = True) -> Iterable[Entry]:
        """What lies there and below."""
        ...

    def read_file(self, path: str) -> Iterator[bytes]:
        """A file, in pieces."""
        ...


def bring(volume: Volume, run: RunFolder) -> list[Path]:
    """Copy into the run's folder what is newer on the volume, or longer, but checkpoints; which files these were."""
    root, brought = f"runs/{run.name}/", []
    for entry in volume.iterdir(f"/{root}", recursive=True):
        name = entry.path.lstrip("/").removeprefix(root)
        here = run.path / name
        if entry.type != FILE or name in {*OWN, run.recipe.name} or name.startswith("checkpoints/") or not _is_below(here, run.path):
            continue
        if here.exists() and (here.stat().st_size, int(here.stat().st_mtime) >= entry.mtime) == (entry.size, True):
            continue
        here.parent.mkdir(parents=True, exist_ok=True)
        part = here.with_name(here.name + ".part")
        with part.open("wb") as file:
            file.writelines(volume.read_file(entry.path))
        part.replace(here)
        brought.append(here)
    return brought


def upload(volume: modal.Volume, order: Order) -> None:
    """Put the run on the volume: all of it where there is none yet, so that one that was begun here goes on; else only its recipe."""
    import modal

    try:
        known = bool(volume.listdir(f"/runs/{order.run.name}"))
    except modal.exception.NotFoundError:
        known = False
    with volume.batch_upload(force=True) as batch:
        for path in order.run.path.rglob("*"):
            name = path.relative_to(order.run.path).as_posix()
            if path.is_file() and name not in OWN and (not known or path == order.run.recipe):
                batch.put_file(path, f"/runs/{order.run.name}/{name}")
        if order.prepared:
            batch.put_directory(order.prepared, f"/prepared/{order.prepared.name}")


def _require() -> None:
    """Raise UsageError where Modal's library is not installed."""
    try:
        import modal  # noqa: F401
    except ImportError as error:
        raise UsageError(f"launch.on: modal needs Modal's library: {error}", change="pip install 'luthier[modal]'") from error


def _requirements() -> tuple[str, ...]:
    """What Luthier needs, in the versions that are installed here, by which the run was planned; torch as it comes for GPUs."""
    wanted = {re.split(r"[\s<>=!~;\[(]", line)[0] for line in metadata.requires("luthier") or () if _is_needed(line)}
    return tuple(f"{name}=={version.partition('+')[0]}" for name in sorted(wanted) if (version := _version(name)))


def _is_needed(line: str) -> bool:
    """Of the extras, those of quantization and of trackers: where they are installed, recipes may ask for them."""
    return "extra ==" not in line or re.search(r"extra == ['\"](quant|track)['\"]", line) is not None


def _version(name: str) -> str:
    """The installed one; empty where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _is_below(path: Path, folder: Path) -> bool:
    """Whether a name from elsewhere stays inside the folder."""
    return path.resolve().is_relative_to(folder.resolve())

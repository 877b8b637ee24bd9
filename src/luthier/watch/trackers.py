"""Trackers: each follows a run's metrics.jsonl in a process of its own, and tells one library of what it finds there.

The only file that imports these libraries, inside functions. Nothing here is called by who trains: `tracked` starts the processes before
and waits for them, so long and no longer, after. What a tracker was told is kept in `runs/NAME/trackers/LIBRARY.json`.

    python -m luthier.watch.trackers LIBRARY RUN_FOLDER        # until its standard input ends, and all is told
"""

import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from luthier.core import files
from luthier.core.errors import PlanRefused
from luthier.core.finding import Finding
from luthier.core.redact import redact
from luthier.core.words import count
from luthier.recipe.load import load
from luthier.recipe.tracking import Tracker, Tracking
from luthier.runs.store import RunFolder
from luthier.watch.series import Column, Series, read, read_on

SECONDS_BETWEEN_LOOKS = 1.0
NICER = 10
"""Than who trains: a tracker has what time is left."""
ENDED = "its process ended: log.txt says why"
SECONDS_TO_END = 10.0
"""For what is still to be told when training is over; for all trackers together."""
NUMBERS: tuple[Column, ...] = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes", "device_utilization", "epoch")
"""What is told of a line, as `train/loss`; of rewarded answers all that it tells besides."""

Tell = Callable[[int, Mapping[str, float]], None]
"""Call with a step and numbers by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Untold:
    """A line of the metrics that a library was not told of yet."""

    step: int
    kind: str
    numbers: Mapping[str, float]
    """Those of NUMBERS that are numbers."""


@dataclass(slots=True, kw_only=True)
class Told:
    """What one library was told of a run, as its file has it."""

    steps: dict[str, int] = field(default_factory=lambda: {"train": 0, "validation": 0})
    """The last step of each kind: a resumed run computes some again, and tells them once."""
    lines: int = 0
    id: str = ""
    """By which the library knows the run, where it gives it a name of its own."""
    failed: str = ""
    """What ended it."""

    @classmethod
    def read(cls, path: Path) -> "Told":
        """That of an earlier process; nothing where there was none, or its file is no longer whole."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()


def refuse_absent(tracking: Tracking) -> None:
    """Raise PlanRefused for a library that is wanted and not installed."""
    if absent := [name for name in tracking.report_to if find_spec(name) is None]:
        what = f"tracking.report_to wants {' and '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed"
        raise PlanRefused(what, change="install it: pip install -c constraints.txt 'luthier[track]'; or leave it out")


@contextmanager
def tracked(run: RunFolder, tracking: Tracking, say: Callable[[str], None], seconds_to_end: float = SECONDS_TO_END) -> Iterator[None]:
    """While it is open, the recipe's trackers follow the run; one that ends before it, and what they were not told by then, are events."""
    late: set[Tracker] = set()
    with _started(run, tracking.report_to) as started:
        try:
            with _attended(run, started, say):
                yield
        finally:  # a run that is stopped has some lines to tell, too
            late = _waited_for(started, seconds_to_end)
            for name in tracking.report_to:
                if found := _untold(run, name, late=name in late, seconds=seconds_to_end):
                    _tell(run, found, say)


def told_file(run: RunFolder, name: Tracker) -> Path:
    """Where what a library was told is kept."""
    return run.path / "trackers" / f"{name}.json"


def follow(run: RunFolder, name: Tracker, over: Callable[[], bool]) -> None:
    """Tell a library of the run's lines as they come, until it is over; what the library raises ends it, and is kept."""
    told_file(run, name).parent.mkdir(exist_ok=True)
    told = Told.read(told_file(run, name))
    told.failed = ""
    try:
        with LIBRARIES[name](run, told) as tell:
            found, last = Series(), False
            while not last:
                last = over()  # before the last look
                found = read_on(run.metrics, found.behind)
                for line in _new(found, told):
                    tell(line.step, line.numbers)
                    told.steps[line.kind], told.lines = line.step, told.lines + 1
                if len(found.train) or len(found.validation):
                    _keep(run, name, told)
    except Exception as error:
        told.failed = redact(f"{type(error).__name__}: {error}".partition("\n")[0])
        raise
    finally:
        _keep(run, name, told)


def main() -> None:
    """One tracker, for the process that trains: it ends when that one's end of the pipe is closed, by whatever."""
    name, folder = next(each for each in LIBRARIES if each == sys.argv[1]), Path(sys.argv[2])

    def over() -> bool:
        if not select.select([sys.stdin], [], [], SECONDS_BETWEEN_LOOKS)[0]:
            return False
        signal.alarm(int(2 * SECONDS_TO_END))  # should the library hang and nobody be left who ends this process
        return True

    follow(RunFolder(folder), name, over)


@contextmanager
def _tensorboard(run: RunFolder, told: Told) -> Iterator[Tell]:
    """Event files in the run folder: `tensorboard --logdir runs`."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(run.path / "trackers" / "tensorboard"))

    def tell(step: int, numbers: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=key, simple_value=value) for key, value in numbers.items()]
        writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))

    try:
        yield tell
    finally:
        writer.close()


@contextmanager
def _wandb(run: RunFolder, told: Told) -> Iterator[Tell]:
    """Weights & Biases: by its own login, or with WANDB_MODE=offline into the run folder, for `wandb sync`."""
    import wandb

    recipe = load(run.recipe).recipe
    told.id = told.id or secrets.token_hex(4)
    config = recipe.model_dump(mode="json")
    into = wandb.init(project=recipe.tracking.project, name=run.name, id=told.id, resume="allow", dir=run.path / "trackers", config=config)
    into.define_metric("*", step_metric="step")  # its own step may not go back, which a validation of the same step would

    def tell(step: int, numbers: Mapping[str, float]) -> None:
        into.log({"step": step, **numbers})

    yield tell
    into.finish()


@contextmanager
def _mlflow(run: RunFolder, told: Told) -> Iterator[Tell]:
    """MLflow: where MLFLOW_TRACKING_URI says, by its own default beside the folder that the command was given in."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    recipe, client = load(run.recipe).recipe, MlflowClient()
    if not told.id:
        known = client.get_experiment_by_name(recipe.tracking.project)
        experiment = known.experiment_id if known else client.create_experiment(recipe.tracking.project)
        told.id = client.create_run(experiment, run_name=run.name, tags={"luthier.folder": str(run.path)}).info.run_id

    def tell(step: int, numbers: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        client.log_batch(told.id, metrics=[Metric(key, value, now, step) for key, value in numbers.items()])

    yield tell
    client.set_terminated(told.id)


@contextmanager
def _trackio(run: RunFolder, told: Told) -> Iterator[Tell]:
    """Trackio: a database on this machine (TRACKIO_DIR), or the Space that TRACKIO_SPACE_ID names; `trackio show` draws it."""
    import trackio

    recipe = load(run.recipe).recipe
    trackio.init(project=recipe.tracking.project, name=run.name, resume="allow", config=recipe.model_dump(mode="json"))

    def tell(step: int, numbers: Mapping[str, float]) -> None:
        trackio.log(dict(numbers), step=step)

    yield tell
    trackio.finish()


LIBRARIES: Mapping[Tracker, Callable[[RunFolder, Told], AbstractContextManager[Tell]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def _new(found: Series, told: Told) -> list[Untold]:
    """Lines that the library has not been told of, by step, a validation behind its step."""
    return sorted(
        (
            Untold(
                step=int(lines["step"][at]),
                kind=kind,
                numbers={f"{kind}/{name}": value for name, column in columns.items() if math.isfinite(value := float(column[at]))},
            )
            for kind, lines in (("train", found.train), ("validation", found.validation))
            for columns in ({name: lines[name] for name in NUMBERS} | dict(lines.more),)
            for at in np.flatnonzero(lines["step"] > told.steps[kind])
        ),
        key=lambda line: (line.step, line.kind),
    )


def _keep(run: RunFolder, name: Tracker, told: Told) -> None:
    files.write_json(told_file(run, name), asdict(told))


@contextmanager
def _started(run: RunFolder, names: Sequence[Tracker]) -> Iterator[Mapping[Tracker, "subprocess.Popen[bytes]"]]:
    """A process for each tracker, which writes into log.txt what its library prints; none of them outlives this."""
    started: dict[Tracker, subprocess.Popen[bytes]] = {}
    try:
        with run.log.open("ab") if names else open(os.devnull, "wb") as log:
            for name in names:
                command = [sys.executable, "-P", "-m", "luthier.watch.trackers", name, str(run.path)]
                # A session of its own: Ctrl-C is for the run, which then has some more lines to tell.
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
                os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICER)  # at most 19, as the kernel has it
                started[name] = process
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


@contextmanager
def _attended(run: RunFolder, started: Mapping[Tracker, "subprocess.Popen[bytes]"], say: Callable[[str], None]) -> Iterator[None]:
    """While it is open, a tracker that ends is told at once: whoever looks at its library's page sees a run that stands still."""
    over = threading.Event()

    def attend() -> None:
        left = dict(started)
        while left and not over.wait(SECONDS_BETWEEN_LOOKS):
            for name in [name for name, process in left.items() if process.poll() is not None]:
                del left[name]
                _tell(run, _ended(run, name), say)

    attending = threading.Thread(target=attend, name="trackers' ends")
    attending.start()
    try:
        yield
    finally:
        over.set()
        attending.join()


def _waited_for(started: Mapping[Tracker, "subprocess.Popen[bytes]"], seconds: float) -> set[Tracker]:
    """Tell the trackers that the run is over, and wait for them together; those that are late."""
    for process in started.values():
        if process.stdin:
            process.stdin.close()
    end = time.monotonic() + seconds
    for process in started.values():
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
    return {name for name, process in started.items() if process.poll() is None}


def _tell(run: RunFolder, found: Finding, say: Callable[[str], None]) -> None:
    run.event("finding", **found.to_json())
    say(f"{found.severity}: {found.message} [{found.code}]")


def _ended(run: RunFolder, name: Tracker) -> Finding:
    """A tracker that has ended while the run goes on: what it was told, and why."""
    told = Told.read(told_file(run, name))
    return Finding(
        code="tracker-ended",
        severity="warn",
        message=f"{name} is told nothing more after {count(told.lines, 'line')}: {told.failed or ENDED}; the run goes on",
        evidence={"tracker": name, "told": told.lines},
        fix=f"luthier logs {run.name}",
    )


def _untold(run: RunFolder, name: Tracker, *, late: bool, seconds: float) -> Finding | None:
    """A tracker that has failed, or was too slow: how many lines it was not told, and why."""
    told = Told.read(told_file(run, name))
    left = len(_new(read(run.metrics), told))
    if not (left or told.failed or late):
        return None
    why = told.failed or (f"it did not answer within {seconds:.0f} s of the run's end" if late else ENDED)
    return Finding(
        code="tracker-behind",
        severity="warn",
        message=f"{name} was not told {left} of the run's lines: {why}",
        evidence={"tracker": name, "lines": left, "told": told.lines},
        fix=f"luthier logs {run.name}",
    )


if __name__ == "__main__":
    main()

"""The verbs that steer a run from outside: save, and stop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.errors import LuthierError, RunError, UsageError
from luthier.flow.watching import status_of

if TYPE_CHECKING:
    from luthier.launch.backend import Job
    from luthier.runs.status import Status
    from luthier.runs.store import RunFolder

SECONDS_BETWEEN_LOOKS = 0.1
PATIENCE_SECONDS = 600.0
"""For a step to end and a checkpoint to be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that was asked for."""

    run: str
    step: int
    checkpoint: str
    """Its folder."""


def save(name: str, *, patience: float = PATIENCE_SECONDS) -> Saved:
    """The checkpoint of the step that the run is in, once it is there; the run goes on.

    Raises UsageError where nothing runs or it cannot be asked from here, and RunError where it ends, fails to save or takes too long.
    """
    from luthier.runs import control
    from luthier.runs.store import find

    run = find(name)
    found = _refuse_still(run)
    if found.state == "queued":
        raise UsageError(f"run {run.name} waits for a machine, and has nothing to save yet", where=str(run.path))
    if (job := _job(run)) and job.on == "modal":
        change = "its volume has every checkpoint that the recipe asks for (checkpoints.save_steps, save_minutes)"
        raise UsageError(f"run {run.name} is in a container, which has a folder of its own", where=str(run.path), change=change)
    asked = time.time()
    control.ask(run, "save")
    end = time.monotonic() + patience
    while control.wished(run) != "nothing" and found.moves and time.monotonic() < end:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        found = status_of(run)
    if why := _save_failed(run, asked):
        raise RunError(why, where=str(run.path))
    step = max(run.saved_steps, default=0)
    if not found.moves and (control.wished(run) != "nothing" or not step):
        raise RunError(f"run {run.name} ended before it saved: {found.state} {found.why}".strip(), where=str(run.path))
    if control.wished(run) != "nothing":
        what = f"run {run.name} has not saved in {patience:.0f} s; it is in step {found.step + 1}, {found.phase}, and will after it"
        raise RunError(what, where=str(run.path), change=f"luthier status {run.name} tells its newest checkpoint")
    return Saved(run=run.name, step=step, checkpoint=str(run.checkpoint(step)))


def stop(name: str, *, now: bool = False, patience: float = PATIENCE_SECONDS) -> Status:
    """How the run stands once it was asked to save and end, or was ended `now`, without a save; after `patience` seconds, whether it has
    or not. The same command goes on with it.

    Through its host where one was given the run, else through its control file: after the step. Raises UsageError where nothing runs.
    """
    from luthier.launch.backends import BACKENDS
    from luthier.runs import control
    from luthier.runs.store import find

    run = find(name)
    found = _refuse_still(run)
    if job := _living_job(run):
        BACKENDS[job.on].stop(run, job, now=now)
    elif now:
        BACKENDS["local"].stop(run, _holder(run, found), now=True)
    else:
        control.ask(run, "stop")
    end = time.monotonic() + patience
    while ((found := status_of(run)).moves or (job and _living_job(run))) and time.monotonic() < end:
        time.sleep(SECONDS_BETWEEN_LOOKS)  # the process too, for the same command again would find it still there
    return found


def _refuse_still(run: RunFolder) -> Status:
    """How the run stands; raises UsageError where nothing runs."""
    found = status_of(run)
    if not found.moves:
        said = {"new": "was not begun", "finished": "is finished", "stopped": "is stopped already"}.get(found.state, f"has {found.state}")
        what = f"run {run.name} {said}: nothing of it runs" + (f" ({found.why})" if found.why else "")
        raise UsageError(what.replace("has killed", "was killed"), where=str(run.path))
    return found


def _job(run: RunFolder) -> Job | None:
    from luthier.launch.backend import Job

    return Job.read(run)


def _living_job(run: RunFolder) -> Job | None:
    """The job that has the run, as its host says; None where it was started in a terminal, or by a machine that cannot be asked."""
    from luthier.launch.backends import BACKENDS

    job = _job(run)
    try:
        return job if job and BACKENDS[job.on].status(run, job) in ("queued", "running") else None
    except LuthierError:  # of a host that cannot be asked from here; then its folder can
        return None


def _holder(run: RunFolder, found: Status) -> Job:
    """The process that trains the run, as a job of this machine."""
    from luthier.launch.backend import Job
    from luthier.runs.state import holder

    if (held := holder(run)) is None:
        raise UsageError(f"run {run.name} is on {found.host or 'another machine'}", where=str(run.path), change="stop it there")
    return Job(on="local", id=str(held.pid), host=held.host, started=held.started)


def _save_failed(run: RunFolder, since: float) -> str:
    """What a save that failed since then has said; empty where none did."""
    from luthier.core import jsonl

    for event in reversed(jsonl.salvage(run.events).records):
        if event.get("code") == "save-failed" and event.get("time", 0.0) >= since:
            return str(event.get("message"))
    return ""

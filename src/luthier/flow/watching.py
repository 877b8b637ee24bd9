"""The verbs that look at runs: what their folders say, and what the host says of a job that it was given."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import LuthierError, UsageError
from luthier.flow.planning import HERE

if TYPE_CHECKING:
    from luthier.runs.status import Status
    from luthier.runs.store import RunFolder
    from luthier.watch.seen import Seen
    from luthier.watch.series import Series

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_DIAGNOSE = 1.0
"""Of a list of all runs: 50 of 1,000 steps."""


def status(name: str) -> Status:
    """Where the run of this name, or in this folder, stands, with what its curves, machine and scores tell now.

    Its host is asked where the folder cannot tell.
    """
    return look(seen(name))


def seen(name: str) -> Seen:
    """The run of this name, or in this folder, for who looks at it again and again."""
    from luthier.runs.store import find
    from luthier.watch.seen import Seen

    return Seen(run=find(name))


def look(run: Seen) -> Status:
    """`status` of a run that was looked at before: what is new is read, and rules are asked a tenth of the time at most."""
    return run.diagnosed(status_of(run.run, run.events()))


def statuses(root: Path | Literal["default"] = "default") -> list[Status]:
    """Where all runs stand, those that moved last first. No host is asked but this machine.

    What curves show now is among their findings where that is known in a second: of those that moved last.
    """
    from luthier.runs.store import runs_root

    return statuses_of(every_run(runs_root() if root == "default" else root, {}))


def every_run(root: Path, before: Mapping[str, Seen]) -> dict[str, Seen]:
    """All runs in a folder, by name; those that were seen before as they were seen."""
    from luthier.runs.store import RunFolder
    from luthier.watch.seen import Seen

    names = [path.parent.name for path in root.glob("*/recipe.yaml")]
    return {name: before.get(name) or Seen(run=RunFolder(root / name)) for name in names}


def statuses_of(runs: Mapping[str, Seen]) -> list[Status]:
    """`statuses` of runs that were looked at before: of those that have ended nothing is read that is as it was."""
    found = [each.kept(lambda run: status_of(run.run, run.events(), ask_far=False)) for each in runs.values()]
    found.sort(key=lambda each: each.moved or 0.0, reverse=True)
    end = time.monotonic() + SECONDS_TO_DIAGNOSE
    for place, each in enumerate(found):
        if time.monotonic() < end:
            found[place] = (run := runs[each.name]).diagnosed(each)
            if not each.moves:
                run.forget()
    return found


def status_of(run: RunFolder, told: Sequence[Mapping[str, Any]] | Literal["unread"] = "unread", *, ask_far: bool = True) -> Status:
    """Where a run stands: what its folder says, and its job's host where that may know better; `told` are its events, if they were read."""
    from luthier.runs.status import status as by_folder

    found = by_folder(run, told)
    return found if found.state in ("new", "running", "finished") else _as_the_host_says(run, found, ask_far=ask_far)


def series(name: str, before: Series | None = None) -> Series:
    """What the run has measured, read on from `before`."""
    from luthier.runs.store import find
    from luthier.watch.series import Series, read_on

    return read_on(find(name).metrics, before or Series())


def logs(name: str, *, follow: bool = False) -> Iterator[str]:
    """What the processes of a run have printed, line by line, the name of its file before it where there are several.

    With `follow`, what they print until the run is over. Raises UsageError where nothing is kept.
    """
    from luthier.runs.store import find

    run = find(name)
    places = dict.fromkeys(_log_files(run), 0)
    if not places and not follow:
        what = f"run {run.name} has no log: what a run of one process prints is shown where it was started, and kept where it was launched"
        raise UsageError(what, where=str(run.path))
    while True:
        last = not follow or not status_of(run).moves  # before the last look: what it printed at its end is in it
        for path in (files := _log_files(run)):
            whole, places[path] = _lines_after(path, places.get(path, 0), to_the_end=last)
            yield from (f"{path.name}: {line}" if len(files) > 1 else line for line in whole)
        if last:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _log_files(run: RunFolder) -> tuple[Path, ...]:
    """Those of its job, which a host elsewhere is asked for, or those that lie in its folder."""
    from luthier.launch.backend import Job
    from luthier.launch.backends import BACKENDS

    job = Job.read(run)
    found = BACKENDS[job.on].logs(run, job) if job else tuple(sorted(run.path.glob("log*.txt")))
    return tuple(path for path in found if path.exists())


def _lines_after(path: Path, place: int, *, to_the_end: bool) -> tuple[list[str], int]:
    """The lines from a byte on, a torn one only at the end, and the byte after them; a file that has become shorter is read anew."""
    with path.open("rb") as file:
        file.seek(place if place <= os.fstat(file.fileno()).st_size else 0)
        start, text = file.tell(), file.read()
    end = len(text) if to_the_end else text.rfind(b"\n") + 1
    return text[:end].decode("utf-8", "replace").splitlines(), start + end


def _as_the_host_says(run: RunFolder, found: Status, *, ask_far: bool) -> Status:
    """The status with what only the job's host knows: that it waits again, has begun, or is no more."""
    from luthier.launch.backend import Job
    from luthier.launch.backends import BACKENDS

    try:
        job = Job.read(run)
        if job is None or not (ask_far or job.on in HERE):
            return found
        said = BACKENDS[job.on].status(run, job)
    except LuthierError:  # a damaged job.json, a host that cannot be asked from here: then the folder is all there is
        return found
    match found.state, said:
        case ("queued", "over"):
            why = f"{job.on} {job.id} ended before it began: luthier logs {run.name} says why"
            return replace(found, state="failed", seconds_left=None, why=why)
        case ("silent", "over"):
            return replace(found, state="killed", seconds_left=None, why=f"{job.on} {job.id} is over, and its ranks have said no last word")
        case ("queued", "running"):
            return replace(found, state="running", phase="preparing")
        case (_, "queued"):
            return replace(found, state="queued", why="")
    return found

"""The verb that gives a run to a host: prepared, planned and refused here, then submitted; what becomes of it is in the run folder."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.envfile import given
from luthier.core.errors import RunError, UsageError
from luthier.core.progress import Progress
from luthier.flow.planning import HERE, SILENT, facts_of, refuse, refuse_absent_devices

if TYPE_CHECKING:
    from luthier.data.store import Prepared
    from luthier.launch.backend import Job, Order
    from luthier.launch.nodes import Node
    from luthier.recipe.load import LoadedRecipe
    from luthier.recipe.schema import Recipe
    from luthier.runs.store import RunFolder

SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A run and the job that it was submitted as."""

    run: RunFolder
    job: Job


def launch(loaded: LoadedRecipe, progress: Progress = SILENT, force: Sequence[str] = ()) -> Launched:
    """A run of the recipe, submitted to the host that `launch.on` names, which begins it or goes on with it.

    Rows are prepared and the plan is made first, so that what is wrong is told here and not after hours in a queue: raises PlanRefused as
    `train` does. Where the recipe leaves the device to a host elsewhere (`launch.gpu: here`), the plan is made there alone.
    """
    from luthier.launch.backends import BACKENDS
    from luthier.launch.ray import require
    from luthier.plan.plan import make
    from luthier.runs.store import alone, open_or_create

    recipe = loaded.recipe
    node = _node(recipe)
    if recipe.launch.on == "ray":
        require()
    prepared = None
    if node.first:
        with given(recipe.launch.env_file):  # for a base that only a token may read; the host is not given it in this way
            prepared = _prepared(recipe, progress)
            if recipe.launch.on in HERE or recipe.launch.gpu != "here":
                refuse(make(facts_of(recipe, prepared, progress, probe=False, there=recipe.launch.on in HERE)), force)
        run = open_or_create(recipe.name, loaded.text, loaded.source)
    else:
        run = opened(loaded, node, progress)
    with alone(run):  # nobody trains it now; who does in a moment takes the lock itself
        _refuse_another(run, recipe)
    job = BACKENDS[recipe.launch.on].submit(_order(recipe, run, node, force, prepared))
    run.event("launched", on=job.on, id=job.id, host=job.host)
    job.write(run)
    return Launched(run=run, job=job)


def launch_text(loaded: LoadedRecipe, force: Sequence[str] = ()) -> str:
    """What `launch` would run, to the letter. Nothing is prepared, written or started."""
    from luthier.launch.backends import BACKENDS
    from luthier.runs.store import RunFolder, folder_of

    recipe = loaded.recipe
    node = _node(recipe)
    run = RunFolder(folder_of(recipe.name, loaded.text).path, node=node.number)
    return BACKENDS[recipe.launch.on].text(_order(recipe, run, node, force, None))


def opened(loaded: LoadedRecipe, node: Node, progress: Progress) -> RunFolder:
    """The recipe's run folder as this node sees it, once the first one has opened it; raises RunError where it does not."""
    from luthier.launch.nodes import SECONDS_TO_JOIN
    from luthier.runs.store import RunFolder, folder_of, runs_root

    end, told = time.monotonic() + SECONDS_TO_JOIN, False
    while not (found := folder_of(loaded.recipe.name, loaded.text)).data.exists():
        if not told:
            progress.say(f"node {node.number} of {node.count}: waiting for the first to open the run in {runs_root()}")
            told = True
        if time.monotonic() > end:
            change = "give the command on the first node, too; LUTHIER_RUNS must be the same folder on all"
            raise RunError(f"the first node has not opened run {loaded.recipe.name}", where=str(runs_root()), change=change)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return RunFolder(found.path, read_only=True, node=node.number)


def _node(recipe: Recipe) -> Node:
    """This machine's place among those of the run; raises LuthierError for what cannot be launched from here."""
    from luthier.launch.nodes import Node, node_here
    from luthier.train.able import refuse_what_cannot_be_trained

    refuse_what_cannot_be_trained(recipe)
    if recipe.launch.on in HERE:
        refuse_absent_devices(recipe)
    return node_here(recipe) if recipe.launch.on == "torchrun" else Node()


def _prepared(recipe: Recipe, progress: Progress) -> Prepared:
    from luthier.data.prepare import prepare

    return prepare(recipe, progress)


def _refuse_another(run: RunFolder, recipe: Recipe) -> None:
    """Raise UsageError where there is nothing to do, or a job does it already."""
    from luthier.launch.backend import Job
    from luthier.launch.backends import BACKENDS

    if run.finished:
        raise UsageError(f"run {run.name} is finished", where=str(run.path), change="change the recipe to train anew")
    job = Job.read(run)
    if job and (state := BACKENDS[job.on].status(run, job)) in ("queued", "running"):
        raise UsageError(f"run {run.name} is {state} already, as {job.on} {job.id}", where=str(run.path), change="wait, or another name")


def _order(recipe: Recipe, run: RunFolder, node: Node, force: Sequence[str], prepared: Prepared | None) -> Order:
    from luthier.launch.attempt import NODE
    from luthier.launch.backend import Order
    from luthier.launch.nodes import ENDPOINT
    from luthier.plan.check.case import seconds_of
    from luthier.plan.hardware import device_of
    from luthier.runs.store import runs_root

    launch = recipe.launch
    environment = {"LUTHIER_RUNS": str(runs_root())}
    if node.count > 1:
        environment |= {NODE: str(node.number), ENDPOINT: node.endpoint}
    device, count = device_of(launch.gpu) if launch.gpu != "here" else (None, 0)
    return Order(
        run=run,
        launch=launch,
        nodes=recipe.parallel.nodes,
        gpu=device.id if device else "",
        gpus=count,
        timeout_seconds="none" if launch.timeout == "none" else seconds_of(launch.timeout),
        force=tuple(force),
        environment=environment,
        files=tuple(_files(recipe)),
        prepared=prepared.folder if prepared else None,
    )


def _files(recipe: Recipe) -> Iterator[Path]:
    """What lies on this machine of all that the recipe names and training reads."""
    split, model = recipe.data.split, recipe.model
    patterns = [source.path for source in recipe.data.sources]
    patterns += [part for part in (split.validation, split.test) if isinstance(part, str)]
    yield from (Path(found) for pattern in patterns for found in sorted(glob.glob(pattern, recursive=True)))
    places = [model.base, model.chat_template, *([] if recipe.lora == "none" else [recipe.lora.init_from])]
    yield from (Path(place) for place in places if os.path.isabs(place))

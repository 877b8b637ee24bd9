"""The verbs before the run: plan, init, and what a plan follows from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core import files
from luthier.core.errors import DataError, ModelError, PlanRefused, UsageError
from luthier.core.progress import Progress, Silent

if TYPE_CHECKING:
    from luthier.core.finding import Change
    from luthier.core.hardware import Hardware
    from luthier.data.store import Prepared
    from luthier.plan.hardware import Device
    from luthier.plan.offers import Offer
    from luthier.plan.plan import Facts, Plan
    from luthier.plan.stated import StatedWorkload
    from luthier.recipe.load import LoadedRecipe
    from luthier.recipe.schema import Model, Recipe
    from luthier.runs.summary import DataSummary
    from luthier.runs.workload import Workload

SILENT = Silent()
HERE = ("local", "torchrun")
"""Of `launch.on`: this machine trains."""


def plan(loaded: LoadedRecipe, stated: StatedWorkload | None = None, progress: Progress = SILENT) -> Plan:
    """What the recipe will take on its devices — steps, memory, time, money — and what is wrong with it, without training anything.

    The data is prepared, unless its rows are only stated.
    """
    from luthier.plan.plan import make

    recipe = loaded.recipe
    return make(facts_of(recipe, stated or prepared_of(recipe, progress), progress, probe=True, there=recipe.launch.on in HERE))


def offers(loaded: LoadedRecipe, stated: StatedWorkload | None = None, progress: Progress = SILENT) -> list[Offer]:
    """The plan on every GPU of the hardware table, and what serving takes there."""
    from luthier.plan.offers import offers as plan_offers

    return plan_offers(facts_of(loaded.recipe, stated or prepared_of(loaded.recipe, progress), progress, probe=False))


def stated(recipe: Recipe, rows: str, tokens: str) -> StatedWorkload:
    """Rows that are not there yet: `rows` is `N` or `N:VALIDATION`, `tokens` is `MEAN`, `MEAN:MAX` or `max_length`."""
    from luthier.plan.stated import StatedWorkload

    return StatedWorkload.read(recipe, rows, tokens)


def keep_plan(planned: Plan) -> Path:
    """Write plan.json beside the prepared rows that the plan is of; a run keeps its own. Raises DiskError where it cannot be written."""
    from luthier.runs.store import prepared_root

    data = planned.facts.data
    path = prepared_root() / (data if isinstance(data, str) else data.hash) / "plan.json"
    with files.told(path.name, path.parent):
        files.write_json(path, planned.to_json())
    return path


def apply(loaded: LoadedRecipe, planned: Plan, codes: Sequence[str]) -> list[str]:
    """Write the changes of these findings into the recipe's file, comments and all else kept; `path: old → new` for each.

    They are the plan's, or those of the recipe's own run, where there is one; of ways to choose from the first is taken.
    """
    from luthier.plan.check import ALTERNATIVES
    from luthier.recipe.edit import apply_changes
    from luthier.watch.rules import CODES

    changes: list[Change] = []
    for code, found in offered(planned, codes).items():
        changes += found[:1] if code in ALTERNATIVES | CODES else found
    edited = apply_changes(loaded.source, changes)
    files.write(loaded.source.resolve(), edited.text)  # a link stays one
    return list(edited.changes)


def offered(planned: Plan, codes: Sequence[str]) -> dict[str, list[Change]]:
    """The changes that findings of each code offer, the plan's or those of the recipe's own run; raises UsageError for a code with none."""
    from luthier.watch.seen import Seen

    run = planned.facts.run
    found: dict[str, list[Change]] = {}
    findings = planned.findings + (Seen(run=run).findings() if run != "none" else ())
    for code in codes:
        found[code] = [change for finding in findings if finding.code == code for change in finding.changes]
        if not found[code]:
            known = ", ".join(dict.fromkeys(finding.code for finding in findings if finding.changes)) or "none"
            what = "has no change to offer" if any(finding.code == code for finding in findings) else "is not among the findings"
            raise UsageError(f"{code} {what}", change=f"findings with changes: {known}")
    return found


def init(path: Path, model: str, data: Path, gpu: str = "here", progress: Progress = SILENT) -> None:
    """Write a recipe with the values that fit the base's size, the rows and the device, each with its reason; one that is there stays."""
    from luthier.core.hardware import this_machine
    from luthier.data.count import count_examples
    from luthier.plan.advice import DataSize, advise
    from luthier.plan.layout import place_of
    from luthier.plan.shape import shape_of
    from luthier.recipe.presets import Beginning, write_recipe
    from luthier.recipe.schema import Data, Model, Source, Split

    if path.exists():
        raise UsageError("there is a recipe already", where=str(path), change="name another with --write, or remove it")
    shape, place = shape_of(config_of(Model(base=model))), place_of(gpu, this_machine())
    counted = count_examples(Data(sources=(Source(path=str(data.absolute())),)), progress)
    if not counted.examples:
        raise DataError("there are no rows to choose values for", where=str(data))
    size = DataSize(rows=round(counted.examples * Split().train), dialogue=counted.answers > 1.5 * counted.examples)
    facts = (f"{shape.parameters / 1e9:.2g} G parameters", f"{counted.examples:,} rows", place.device.name)
    beginning = Beginning(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", data.stem).strip("-._") or "mine",
        base=model,
        path=os.path.relpath(data, path.absolute().parent),
        gpu=gpu,
        facts=facts,
    )
    values = advise(shape.parameters, size, place.device, mixture=shape.experts > 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, write_recipe(beginning, [(item.path, item.value, item.comment) for item in values]))


def refuse(planned: Plan, force: Sequence[str]) -> None:
    """Raise PlanRefused where a finding makes the run impossible and its code is not forced."""
    from luthier.plan.check import CODES

    if unknown := set(force) - CODES:
        raise UsageError(f"--force {min(unknown)}: no finding is called so", change="docs/findings lists them all")
    refused = [finding for finding in planned.refused if finding.code not in force]
    if refused:
        told = "\n  ".join(f"{finding.message} [{finding.code}]" for finding in refused)
        change = "; ".join(f"{change.path}={change.value}" for finding in refused for change in finding.changes)
        raise PlanRefused(told, change=f"would help: {change}" if change else "", findings=tuple(refused))


def refuse_absent_devices(recipe: Recipe) -> None:
    """Raise PlanRefused where the recipe is for devices that this machine has not, and that no cluster is asked for."""
    from luthier.core.hardware import this_machine
    from luthier.plan.hardware import here
    from luthier.plan.layout import stands_here

    gpu, host = recipe.launch.gpu, this_machine()
    if gpu == "here" or recipe.launch.on == "ray" or stands_here(gpu, host):
        return
    device, count = here(host)
    has = f"{count} × {device.name}" if host.gpus else "no GPU"
    change = "give it to a host that has them: luthier launch R --on slurm, ray or modal; or set launch.gpu=here"
    raise PlanRefused(f"launch.gpu is {gpu}, and this machine has {has}", change=change)


def facts_of(recipe: Recipe, rows: Prepared | StatedWorkload, progress: Progress, *, probe: bool, there: bool = True) -> Facts:
    """All that a plan follows from; with `probe`, what this processor reaches is measured where no earlier run tells.

    `there`: this machine is to train it, and so `launch.gpu` means its own devices, if it has them.
    """
    from luthier.core.hardware import this_machine
    from luthier.data.store import Prepared
    from luthier.data.survey import PreparedWorkload
    from luthier.flow.reinforcing import rows_at_most
    from luthier.plan.layout import Task, arrived, layout_of, place_of, stands_here
    from luthier.plan.plan import Facts
    from luthier.plan.resident import resident_bytes
    from luthier.plan.shape import shape_of
    from luthier.recipe.load import dump
    from luthier.runs.store import of_recipe
    from luthier.train.rate import RateHere

    host, config = this_machine(), config_of(recipe.model)
    workload: Workload
    data: DataSummary | Literal["stated"]
    if isinstance(rows, Prepared):
        workload, data = PreparedWorkload.of(rows, recipe.seed, recipe.training.global_batch_size), rows.summary
        if recipe.rl != "none":
            workload = replace(workload, train=rows_at_most(recipe.rl, rows))
    else:
        workload, data = rows, "stated"
    gpu, nodes = recipe.launch.gpu, recipe.parallel.nodes
    own = there and gpu != "here" and stands_here(gpu, host)
    ranks = layout_of(recipe).devices
    place = arrived(gpu, host, nodes) if own else place_of(gpu, host, ranks, nodes)
    place = replace(
        place,
        device=_with_bandwidth(place.device, recipe, host, progress if probe else "as known"),
        free_bytes=place.free_bytes + (resident_bytes() if ranks == 1 else 0),
    )
    task = Task(recipe=recipe, shape=shape_of(config), workload=workload, place=place)
    rate = RateHere(task=task, config=config, host=host, progress=progress, probe=probe)
    return Facts(task=task, data=data, host=host, rate=rate, run=of_recipe(recipe.name, dump(recipe)))


def _with_bandwidth(device: Device, recipe: Recipe, host: Hardware, probe: Progress | Literal["as known"]) -> Device:
    """A processor with what its memory gives, which no table knows: as it was found before, or where it matters is found by a probe."""
    from luthier.plan.check.case import waits_for_memory
    from luthier.runs import rates

    if device.kind != "cpu" or not device.local:
        return device
    threads = rates.threads_here(host)
    found = rates.known_bandwidth(device.name, threads)
    if not found and probe != "as known" and (waits_for_memory(recipe) or recipe.best_by != "loss"):
        from luthier.train.bandwidth import memory_bandwidth

        found = memory_bandwidth(threads)
        rates.keep_or_say(rates.MemoryRead(processor=device.name, threads=threads, bytes_per_second=found), probe.say)
    return replace(device, bandwidth=found)


def prepared_of(recipe: Recipe, progress: Progress) -> Prepared:
    """The recipe's data; a plan can do without, which the error tells."""
    from luthier.data.prepare import prepare

    try:
        return prepare(recipe, progress)
    except DataError as error:
        before = "before there is data: --rows N --tokens MEAN:MAX"
        raise DataError(error.what, where=error.where, change="; or, ".join(filter(None, (error.change, before)))) from error


def config_of(model: Model) -> Mapping[str, Any]:
    """The base's config.json: bundled, in its folder, or from the hub."""
    from luthier.data.repository import open_repository
    from luthier.plan.shape import known_config

    if not Path(model.base).is_dir() and (bundled := known_config(model.base)):
        return bundled
    repository = open_repository(model)
    config = repository.json("config.json")
    if not config:
        what = (
            "has no config.json" if repository.is_folder else "the hub cannot be reached, and its config.json is neither bundled nor cached"
        )
        raise ModelError(what, where=model.base, change="set model.base to a folder with config.json, or to a model of the table")
    return config

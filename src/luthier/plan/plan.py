"""Plan: what a recipe will take on a device — steps, memory, time, money — and what is wrong with it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from luthier.core import jsonl
from luthier.core.errors import RunError
from luthier.core.finding import Finding
from luthier.core.hardware import Hardware, free_disk_bytes, free_memory_bytes
from luthier.plan.check import check
from luthier.plan.check.case import Case
from luthier.plan.ending import Ending, resolve_ending
from luthier.plan.hardware import Device
from luthier.plan.layout import Chosen, Task, choose, remedies
from luthier.plan.rate import circumstances
from luthier.plan.scoring import writing
from luthier.plan.setup import Engine, Resolved, Setup, Sizes
from luthier.plan.speed import Range, Rate, Time, cost, estimate
from luthier.plan.steps import Steps, count_steps
from luthier.runs.rates import Circumstances
from luthier.runs.store import RunFolder, runs_root
from luthier.runs.summary import DataSummary
from luthier.runs.workload import Survey

SETUP_TOLD = ("dtype", "quantization", "engine", "layout", "allocator")
"""In plan.json; the rest is resolved, or stands in the recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that a plan follows from."""

    task: Task
    data: DataSummary | Literal["stated"]
    host: Hardware
    rate: Callable[[Device, Setup, Survey], Rate]
    """Operations a second that one device will reach."""
    run: RunFolder | Literal["none"] = "none"
    """Of this recipe, where there is one already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is known before the run."""

    facts: Facts
    chosen: Chosen
    steps: Steps
    ending: Ending
    time: Time
    cost: Range | None
    """US dollars of all devices; None where the price of one is not known."""
    findings: tuple[Finding, ...] = ()

    @property
    def setup(self) -> Setup:
        """How it is computed."""
        return self.chosen.setup

    @property
    def resolved(self) -> tuple[Resolved, ...]:
        """What every `auto` became."""
        return (*self.chosen.resolved, *self.ending.resolved)

    @property
    def refused(self) -> tuple[Finding, ...]:
        """What makes the run impossible."""
        return tuple(finding for finding in self.findings if finding.severity == "refuse")

    def circumstances(self, threads: int) -> Circumstances:
        """What its rate depends on."""
        return circumstances(self.facts.task.place.device, threads, self.facts.task.shape, self.setup, self.chosen.survey)

    def going_on(self, sizes: Sizes) -> "Plan":
        """The plan of a run that began with these."""
        return make(replace(self.facts, task=replace(self.facts.task, begun=sizes)))

    def with_engine(self, engine: Engine) -> "Plan":
        """The plan now that the loaded model is known to be computed so."""
        return make(replace(self.facts, task=replace(self.facts.task, engine=engine)))

    def after_failure(self) -> "Plan":
        """The plan with the next smaller micro batch, or gradient checkpointing: this one's was tried, and was out of memory.

        Raises PlanRefused where none is left.
        """
        task = self.facts.task
        failed = replace(task, failed=(*task.failed, self.setup.sizes), failed_bytes=self.chosen.memory.peak_bytes)
        return make(replace(self.facts, task=failed))

    def to_json(self) -> dict[str, Any]:
        """As it stands in plan.json."""
        place, memory, time = self.facts.task.place, self.chosen.memory, self.time
        return {
            "device": {"id": place.device.id, "name": place.device.name, "count": place.count, "free_bytes": place.free_bytes},
            "steps": {**self.steps.to_json(), **self._per_step()},
            "sizes": self.setup.sizes.to_json(),
            "memory": {
                "peak_bytes": memory.peak_bytes,
                "device_bytes": memory.device_bytes,
                "peak_at": memory.peak_at,
                "instants": dict(memory.instants),
                "lines": [asdict(line) for line in memory.lines],
            },
            "time": {
                **asdict(time.total),
                "step": time.step,
                "validation": time.validation,
                "saves": time.saves,
                "rate": asdict(time.rate),
            },
            "cost": asdict(self.cost) if self.cost else None,
            "setup": {key: value for key, value in asdict(self.setup).items() if key in SETUP_TOLD},
            "resolved": [asdict(item) for item in self.resolved],
            "rejected": [asdict(item) for item in self.chosen.rejected],
            "findings": [finding.to_json() for finding in self.findings],
        }

    def _per_step(self) -> Mapping[str, object]:
        """Tokens of a mean step, and what packing makes of them."""
        survey, layout = self.chosen.survey, self.setup.layout
        return {
            "last_save_before_the_end": self.steps.last_save_before_end,
            "tokens_per_step": survey.mean("tokens") * layout.data,
            "supervised_tokens_per_step": survey.mean("supervised") * layout.data,
            "micro_batches_per_step": survey.micro_batches,
            "packs_per_epoch": survey.micro_batches * self.steps.per_epoch,
            "replicas": layout.data,
            "rows_per_split": {"train": self.facts.task.workload.rows, "validation": self.facts.task.workload.validation_rows},
            "shared_share": survey.shared_share,
            "padding_share": survey.padding_share,
        }


def make(facts: Facts) -> Plan:
    """The plan that follows from the facts, with its findings; raises PlanRefused and RecipeError for what has no plan at all."""
    task = facts.task
    recipe, workload, place = task.recipe, task.workload, task.place
    local = place.device.local
    steps = count_steps(workload.rows, workload.validation_rows, recipe.training, recipe.checkpoints)
    ending = resolve_ending(recipe.checkpoints, workload.validation_rows)
    chosen = choose(task)
    rate = facts.rate(place.device, chosen.setup, chosen.survey)
    time = estimate(task.shape, chosen.setup, chosen.survey, steps, rate, writing(task, facts.data, chosen, rate))
    price = place.device.price_per_hour if recipe.launch.price_per_hour == "auto" else recipe.launch.price_per_hour
    dollars = None if price is None else cost(time, chosen.setup.layout, price)
    case = Case(
        recipe=recipe,
        shape=task.shape,
        setup=chosen.setup,
        device=place.device,
        num_devices=place.count,
        steps=steps,
        survey=chosen.survey,
        memory=chosen.memory,
        time=time,
        data=facts.data,
        host=facts.host if local else "elsewhere",
        host_free_bytes=free_memory_bytes() if local else "unknown",
        disk_free_bytes=free_disk_bytes(runs_root()) if local and not (facts.run != "none" and facts.run.finished) else "unknown",
        saved=facts.run.saved_steps if facts.run != "none" else (),
        remedies=() if chosen.memory.fits else remedies(task),
    )
    return Plan(facts=facts, chosen=chosen, steps=steps, ending=ending, time=time, cost=dollars, findings=check(case))


def begun(run: RunFolder) -> Sizes | Literal["none"]:
    """The sizes that a run with checkpoints goes on with: those of its last start by events.jsonl, or plan.json's where that does not tell.

    Raises RunError where neither does, and for a run of a version that drew dropout otherwise.
    """
    if not run.saved:
        return "none"
    told = (Sizes.of_sealed(record.get("sizes")) for record in jsonl.salvage(run.events).records if record.get("event") == "started")
    if known := [sizes for sizes in told if sizes != "damaged"]:
        return known[-1]
    if not run.plan.exists():
        return "none"
    planned = _planned_sizes(run)
    if planned == "damaged":
        change = "put it back; or remove it, and the run goes on with the sizes that fit now: equal up to rounding"
        what = "plan.json is damaged: its sizes are needed to go on, and events.jsonl does not have them either"
        raise RunError(what, where=str(run.plan), change=change)
    return planned


def plan_is_whole(run: RunFolder, kept: Sizes) -> bool:
    """Whether plan.json is there, and says the sizes that the run goes on with."""
    return run.plan.exists() and _planned_sizes(run) == kept


def _planned_sizes(run: RunFolder) -> Sizes | Literal["damaged"]:
    """The sizes in plan.json; raises RunError for a version that drew dropout otherwise."""
    try:
        sizes = json.loads(run.plan.read_text(encoding="utf-8"))["sizes"]
        if "packing" in sizes:
            return Sizes.of_json(sizes)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "damaged"
    change = "finish it with that version, or give the recipe another name"
    raise RunError("the run was begun by a version that drew dropout otherwise", where=str(run.path), change=change)

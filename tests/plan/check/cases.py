"""Cases as the plan makes them: a sound recipe on an H100, changed by `key=value` as on the command line, in a world that changes, too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from luthier.core.finding import Change, Finding
from luthier.core.hardware import Gpu, Hardware
from luthier.plan.check import check
from luthier.plan.check.case import Case
from luthier.plan.layout import Place, Task, choose, layout_of, place_of, remedies
from luthier.plan.scoring import writing
from luthier.plan.shape import known_config, shape_of
from luthier.plan.speed import Range, Rate, estimate
from luthier.plan.stated import StatedWorkload
from luthier.plan.steps import count_steps
from luthier.recipe.check import check as checked
from luthier.recipe.draft import Draft, in_file
from luthier.recipe.override import override
from luthier.recipe.schema import Recipe
from luthier.runs.summary import Cut, DataSummary, Lengths, Overlap, OverLength, RowCounts, SplitSummary, Template

FILE = Path("sound.yaml")
BASE: dict[str, Any] = {
    "name": "sound",
    "model": {"base": "Qwen/Qwen3-0.6B"},
    "data": {"sources": [{"path": "rows.jsonl"}]},
    "checkpoints": {"eval_steps": "10%", "save_steps": "10%"},
    "evaluation": {"tasks": [{"name": "answers"}]},
    "decision": {"deploy": {"answers.exact": ">= 0.8"}},
    "launch": {"gpu": "H100"},
}
PROCESSOR = Hardware(processor="EPYC", cores=16, memory_bytes=200 * 10**9, bfloat16=True, gpus=())


def gpu(**facts: Any) -> Gpu:
    """An H100 of one's own."""
    sound = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * 10**9, "free_bytes": 79 * 10**9, "capability": "9.0"}
    return Gpu(**{**sound, "drives_display": False, "persistent": True, **facts})


def host(*gpus: Gpu) -> Hardware:
    """This machine, with GPUs of its own."""
    return Hardware(processor="EPYC", cores=16, memory_bytes=200 * 10**9, bfloat16=True, gpus=gpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What stands in no recipe: the examples, and this machine (for `launch.gpu=here`)."""

    examples: int = 2500
    """Of all splits."""
    turns: float = 1.0
    """Answers of an example."""
    long: int = 0
    """Examples besides, of 2,000 tokens and 4 answers each: lost where max_length is less."""
    supervised: float = 0.5
    """Share of the tokens."""
    twins: int = 0
    """Test prompts that nearly stand in train, unless near-duplicates are removed."""
    groups: Mapping[str, float] = field(default_factory=dict)
    """Training rows by group."""
    prefix_stable: bool = True
    data: Literal["prepared", "stated"] = "prepared"
    host: Hardware = PROCESSOR
    host_free: int | Literal["unknown"] = "unknown"
    disk_free: int | Literal["unknown"] = "unknown"
    device_free: int | Literal["all"] = "all"
    bandwidth: float = 0.0
    """Of this machine's processor, if it was measured."""
    saved: tuple[int, ...] = ()
    """Checkpoints of the run that are there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(StatedWorkload):
    """Stated rows, of which it is also said how much they share."""

    shared: float

    def shared_share(self) -> float:
        return self.shared


SOUND = World()


def recipe_of(*changes: str, mended: Sequence[Change] = ()) -> Recipe:
    """The sound recipe with changes, and then with those that a finding named."""
    values = BASE
    for round_of_changes in (changes, map(_written, mended)):
        draft = Draft(file=FILE, values=values, origins={(section,): in_file(FILE)(1) for section in values})
        for change in round_of_changes:
            override(draft, change)
        values = draft.values
    return checked(draft)


def case(*changes: str, world: World = SOUND, mended: Sequence[Change] = ()) -> Case:
    """What the plan gives its checks for the changed recipe."""
    recipe = recipe_of(*changes, mended=mended)
    config = known_config(recipe.model.base)
    if config is None:
        raise KeyError(recipe.model.base)
    data = _data(recipe, world)
    answer = 0 if recipe.rl == "none" else recipe.rl.max_new_tokens
    workload = Rows(
        rows=data.splits["train"].rows,
        validation_rows=data.splits["validation"].rows if "validation" in data.splits else 0,
        mean=400 + answer,
        longest=answer + (2000 if world.long and recipe.data.max_length == "fit" else 800),
        supervised_share=world.supervised,
        shared=0.0 if world.prefix_stable else 0.5,
    )
    task = Task(recipe=recipe, shape=shape_of(config), workload=workload, place=_place(recipe, world))
    chosen = choose(task)
    steps = count_steps(workload.rows, workload.validation_rows, recipe.training, recipe.checkpoints)
    rate = Rate(flops=Range(low=1e14, mid=2e14, high=3e14), source="stated")
    return Case(
        recipe=recipe,
        shape=task.shape,
        setup=chosen.setup,
        device=task.place.device,
        num_devices=task.place.count,
        steps=steps,
        survey=chosen.survey,
        memory=chosen.memory,
        time=estimate(task.shape, chosen.setup, chosen.survey, steps, rate, writing(task, data, chosen, rate)),
        data=data if world.data == "prepared" else "stated",
        host=world.host if task.place.device.local else "elsewhere",
        remedies=() if chosen.memory.fits else remedies(task),
        host_free_bytes=world.host_free,
        disk_free_bytes=world.disk_free,
        saved=world.saved,
    )


def found(*changes: str, world: World = SOUND, mended: Sequence[Change] = ()) -> dict[str, Finding]:
    """The findings by code."""
    return {finding.code: finding for finding in check(case(*changes, world=world, mended=mended))}


def only(code: str, *changes: str, world: World = SOUND, beside: Sequence[str] = ()) -> Finding:
    """The finding of this code, if it and those named `beside` are all there is; if it names changes, they must make an end of it."""
    findings = found(*changes, world=world)
    assert sorted(findings) == sorted([code, *beside])
    finding = findings[code]
    if finding.changes:
        assert code not in found(*changes, world=world, mended=finding.changes)
    return finding


def _written(change: Change) -> str:
    """A change as an override."""
    return f"{change.path}={str(change.value).lower() if isinstance(change.value, bool) else change.value}"


def _place(recipe: Recipe, world: World) -> Place:
    place = place_of(recipe.launch.gpu, world.host, layout_of(recipe).devices, recipe.parallel.nodes)
    free = place.free_bytes if world.device_free == "all" else world.device_free
    if recipe.launch.gpu == "here" and not world.host.gpus:
        free = place.device.memory_bytes if world.device_free == "all" else world.device_free
    device = replace(place.device, bandwidth=world.bandwidth) if place.device.kind == "cpu" else place.device
    return Place(device=device, count=place.count, free_bytes=free)


def _data(recipe: Recipe, world: World) -> DataSummary:
    """What `prepare` would make of the world's examples under the recipe's rules."""
    split = recipe.data.split
    shares = {"train": split.train, "validation": split.validation, "test": split.test}
    lost = world.long if recipe.data.max_length != "fit" and recipe.data.max_length < 2000 and recipe.data.over_length == "drop" else 0
    splits = {
        name: _split(round(world.examples * share), world, lost if name == "train" else 0)
        for name, share in shares.items()
        if isinstance(share, float) and share
    }
    twins = 0 if recipe.data.deduplicate == "near" else world.twins
    pairs = ("rows.jsonl:1 ~ rows.jsonl:9",) if twins else ()
    overlap = Overlap(exact=0, near=twins, share_exact=0.0, share_near=twins / splits["test"].examples, examples=pairs)
    return DataSummary(
        hash="0" * 16,
        sources=(),
        rows=RowCounts(read=world.examples, kept=world.examples, dropped={}, dropped_examples={}),
        groups=world.groups,
        splits=splits,
        max_length=800,
        template=Template(sha256="1" * 64, prefix_stable=world.prefix_stable, end_of_turn="<|im_end|>", stop_ids=(2,)),
        overlap={"test": overlap},
    )


def _split(examples: int, world: World, lost: int) -> SplitSummary:
    answers = round(examples * world.turns)
    rows = examples if world.prefix_stable else answers
    return SplitSummary(
        examples=examples,
        rows=rows,
        tokens=400 * rows,
        supervised_tokens=round(400 * rows * world.supervised),
        answers=answers,
        wanted_share=0.8,
        obtained_share=0.8,
        groups=world.groups,
        lengths=Lengths(total=400 * rows, mean=400.0, p50=400, p95=700, max=800, histogram={512: rows}, coverage={512: 1.0}),
        cut=Cut(),
        over_length=OverLength(examples=lost, answers=4 * lost),
    )

"""What `auto` becomes: data type, packing, gradient checkpointing, micro batch, replicas — each with its reason, and what was rejected."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from luthier.core.environment import Allocator
from luthier.core.errors import PlanRefused
from luthier.core.finding import Change
from luthier.core.hardware import Float32Products, Hardware, free_memory_bytes
from luthier.plan.asked import asked_here
from luthier.plan.hardware import Device, device_of, here, table
from luthier.plan.memory import Memory, ledger
from luthier.plan.setup import SAID, Dtype, Engine, Layout, Resolved, Setup, Sizes
from luthier.plan.shape import ModelShape
from luthier.plan.tensor import has_plan, indivisible
from luthier.recipe.schema import Lora, Recipe
from luthier.runs.workload import MicroBatchSize, Packing, Survey, Workload

TOKENS = {"cpu": 4096, "cuda": 16384}
"""Tokens of an `auto` micro batch where memory allows them. The CPU's is measured (2026-11-20, Zen 5, one thread, hidden 512 × 8 layers,
bfloat16, trees of 16 rows of 316 tokens): a step in packs of at most 1,024 tokens 7.24 s, 2,048 7.16, 4,096 6.74, 8,192 6.76. The GPU's
is a guess."""
FILLING = 8
"""Micro batches of a step for each stage that has one before it: a pipeline then idles for a ninth of the time. Halving packs from 4,096 to
2,048 tokens, as above, costs 6 %; 4 micro batches for two stages idle for a fifth of it, 8 for a ninth."""
HEADROOM = 0.85
"""Of the free memory, what an `auto` may use: in 19 of 20 runs the ledger errs by at most a fifth (docs/plan-accuracy.md)."""
WORTH_A_TREE = 0.05
"""Share of a step's tokens that several rows begin with. Building the tree costs 2.4 ms for 16 rows; 5 % of a step of model S are 30 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Something that was considered for an `auto` value, and why it was not taken."""

    path: str
    value: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The devices of a run, and the memory that is free on each. Of ranks that share a processor, each part of it counts as one."""

    device: Device
    count: int
    free_bytes: int
    allocator: Allocator = "glibc"
    float32_by: Float32Products = "oneDNN"


def place_of(gpu: str, host: Hardware, ranks: int = 1, nodes: int = 1) -> Place:
    """Where `launch.gpu` says: this machine with what is free on it now, or devices to rent; raises UsageError for an unknown name.

    A processor is divided among its ranks: it has memory for each of them, and at most one for each core. Nodes are taken to be alike.
    """
    if gpu != "here":
        return rented(gpu, nodes)
    device, count = here(host)
    if host.gpus:
        return Place(device=device, count=nodes * count, free_bytes=host.gpus[0].free_bytes, allocator=host.allocator)
    each = -(-ranks // nodes)
    part = replace(device, memory_bytes=device.memory_bytes // each)
    return Place(
        device=part,
        count=nodes * min(each, host.cores),
        free_bytes=free_memory_bytes() // each,
        allocator=host.allocator,
        float32_by=host.float32_by,
    )


def rented(gpu: str, nodes: int = 1) -> Place:
    """Devices of the hardware table, with all of their memory free; raises UsageError for an unknown name."""
    device, count = device_of(gpu)
    return Place(device=device, count=nodes * count, free_bytes=device.memory_bytes)


def arrived(gpu: str, host: Hardware, nodes: int = 1) -> Place:
    """Devices that `launch.gpu` names, now that the run is where they stand: with what is free on them, at the price of rented ones."""
    place = rented(gpu, nodes)
    own = replace(here(host)[0], price_per_hour=place.device.price_per_hour, price_source=place.device.price_source)
    return replace(place, device=own, free_bytes=host.gpus[0].free_bytes, allocator=host.allocator)


def stands_here(gpu: str, host: Hardware) -> bool:
    """Whether this machine has the devices that `launch.gpu` names."""
    device, count = device_of(gpu)
    own, there = here(host)
    return own.id == device.id and count <= there


def layout_of(recipe: Recipe) -> Layout:
    """That which the recipe asks for. Of `auto` replicas there is one here, or as many as the devices that `launch.gpu` names leave."""
    parallel = recipe.parallel
    replicas = _left_for(recipe, 1 if recipe.launch.gpu == "here" else rented(recipe.launch.gpu, parallel.nodes).count)
    return Layout(data=replicas, shard=parallel.shard, tensor=parallel.tensor, pipeline=parallel.pipeline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be placed where."""

    recipe: Recipe
    shape: ModelShape
    workload: Workload
    place: Place
    engine: Engine | Literal["predicted"] = "predicted"
    """Known once the model is loaded and tried."""
    begun: Sizes | Literal["none"] = "none"
    """Of a run that goes on."""
    failed: tuple[Sizes, ...] = ()
    """Tried, and out of memory."""
    failed_bytes: float = math.inf
    """What the ledger said of the smallest of them: only what needs less is tried."""

    @property
    def rows_per_step(self) -> int:
        """Of one device."""
        return -(-self.recipe.training.global_batch_size // _replicas(self)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A setup, the micro batches it makes, what they need, and why."""

    setup: Setup
    survey: Survey
    memory: Memory
    resolved: tuple[Resolved, ...]
    rejected: tuple[Rejected, ...]


def choose(task: Task) -> Chosen:
    """The setup of a run: of those allowed the fastest that fits, or the smallest where none does. Raises PlanRefused for rows that
    cannot be packed as the recipe says."""
    engine, engine_why = _engine(task)
    packing, packing_why = _packing(task, engine, engine_why)
    dtype, dtype_why = _dtype(task)
    replicas, replicas_why = _replicas(task)
    recipe = task.recipe
    setup = Setup(
        device=task.place.device.kind,
        dtype=dtype,
        quantization=recipe.model.quantization,
        double_quant=recipe.model.double_quant,
        lora=recipe.lora,
        optimizer=recipe.training.optimizer,
        engine=engine,
        chunked_head=recipe.lora != "none" and task.shape.plain_head and "lm_head" not in recipe.lora.target_modules,
        micro_batch=MicroBatchSize(rows=1, tokens=task.workload.longest, packing=packing),
        checkpoint_activations=False,
        layout=Layout(data=replicas, shard=recipe.parallel.shard, tensor=recipe.parallel.tensor, pipeline=recipe.parallel.pipeline),
        allocator=task.place.allocator,
        float32_by=task.place.float32_by,
    )
    fitted = _fitted(task, setup)
    attention = recipe.model.attention if recipe.model.attention != "auto" else "sdpa" if engine == "plain" else "luthier"
    told = (
        Resolved(path="model.attention", value=attention, why=SAID if recipe.model.attention == attention else engine_why),
        Resolved(path="model.dtype", value=dtype, why=dtype_why),
        Resolved(path="data.packing", value=packing, why=packing_why),
        Resolved(path="parallel.data", value=replicas, why=replicas_why),
    )
    return replace(fitted, resolved=(*told, *fitted.resolved))


def remedies(task: Task) -> tuple[Change, ...]:
    """The three cheapest changes of the recipe after which a run that does not fit would, each alone."""
    found = []
    for change, changed in _changes(task):
        memory = choose(changed).memory
        if memory.fits:
            why = f"{memory.peak_bytes / 1e9:.1f} of {memory.device_bytes / 1e9:.1f} GB; {change.why}"
            found.append(replace(change, why=why))
        if len(found) == 3:
            break
    return tuple(found)


def _fitted(task: Task, setup: Setup) -> Chosen:
    """Micro batch and gradient checkpointing: the first of the candidates that fits, or else the smallest; raises PlanRefused where what
    was tried has left none."""
    limit, found = HEADROOM * task.place.free_bytes, list[Chosen]()
    for sizes in _candidates(task, setup.micro_batch.packing):
        tried = replace(setup, micro_batch=sizes.micro_batch, checkpoint_activations=sizes.checkpoint_activations)
        survey = task.workload.survey(sizes.micro_batch, task.recipe.training.global_batch_size, setup.layout.data)
        memory = ledger(task.shape, tried, survey, task.place.free_bytes, asked_here(task.recipe, survey))
        if memory.peak_bytes < task.failed_bytes:
            found.append(Chosen(setup=tried, survey=survey, memory=memory, resolved=(), rejected=()))
            if memory.peak_bytes <= limit:
                break
    if not found:
        raise _nothing_left(task)
    chosen = found[-1] if found[-1].memory.peak_bytes <= limit else min(found, key=lambda each: each.memory.peak_bytes)
    unfit = f"of which {HEADROOM:.0%} may be planned"
    rejected = [_rejected(each.setup.sizes, f"{_said(each.memory)}, {unfit}") for each in found if each is not chosen]
    rejected += [_rejected(sizes, "tried, and out of memory") for sizes in task.failed]
    return replace(chosen, resolved=_sizes_told(task, chosen.setup.sizes, _said(chosen.memory)), rejected=tuple(rejected))


def _said(memory: Memory) -> str:
    return f"{memory.peak_bytes / 1e9:.3g} of {memory.device_bytes / 1e9:.3g} GB"


def _rejected(sizes: Sizes, why: str) -> Rejected:
    value = f"{sizes.micro_batch.tokens} tokens" + (", with gradient checkpointing" if sizes.checkpoint_activations else "")
    return Rejected(path="training.micro_batch_size", value=value, why=why)


def _nothing_left(task: Task) -> PlanRefused:
    """With what would fit, by a ledger that has less memory to give than what failed took."""
    less = replace(task.place, free_bytes=int(min(task.place.free_bytes, task.failed_bytes - 1)))
    change = "; or ".join(
        f"set {change.path}={change.value} ({change.why})"
        for change in remedies(replace(task, place=less, failed=(), failed_bytes=math.inf, begun="none"))
    )
    what = f"the smallest micro batch, of one row of {task.workload.longest} tokens, was tried and is out of memory"
    return PlanRefused(what, change=change or "take a smaller model, or a shorter data.max_length")


def _sizes_told(task: Task, sizes: Sizes, said: str) -> tuple[Resolved, Resolved]:
    training, longest = task.recipe.training, task.workload.longest
    tokens, checkpointing = sizes.micro_batch.tokens, sizes.checkpoint_activations
    rows = min(sizes.micro_batch.rows, max(1, tokens // longest))
    filling = "; small, so that all stages of the pipeline work at once" if task.recipe.parallel.pipeline > 1 else ""
    micro_why, checkpointing_why = (
        f"{tokens} tokens: {rows} {'row' if rows == 1 else 'rows'} of the longest, more of shorter ones; {said}{filling}",
        f"{said} {'with' if checkpointing else 'without'} it",
    )
    if task.begun != "none":
        micro_why = checkpointing_why = "as when the run began"
    return (
        Resolved(path="training.micro_batch_size", value=rows, why=SAID if training.micro_batch_size == rows else micro_why),
        Resolved(
            path="training.gradient_checkpointing",
            value=checkpointing,
            why=SAID if training.gradient_checkpointing == checkpointing else checkpointing_why,
        ),
    )


def _candidates(task: Task, packing: Packing) -> list[Sizes]:
    """Micro batch and gradient checkpointing, the fastest first: a smaller micro batch goes before recomputing, half as much again of LoRA.

    What the recipe says is the only candidate, until it was tried and failed; none is left where all have.
    """
    if task.begun != "none" and not task.failed:
        return [replace(task.begun, micro_batch=replace(task.begun.micro_batch, packing=packing))]
    training, longest = task.recipe.training, task.workload.longest
    rows = task.rows_per_step if training.micro_batch_size == "auto" else training.micro_batch_size
    most = rows * longest if training.micro_batch_size != "auto" else min(rows * longest, _most_tokens(task, packing))
    budgets = [max(longest, most)]
    while budgets[-1] > longest:
        budgets.append(max(longest, budgets[-1] // 2))
    every = [
        Sizes(micro_batch=MicroBatchSize(rows=rows, tokens=tokens, packing=packing), checkpoint_activations=checkpointing)
        for checkpointing in ((False, True) if training.gradient_checkpointing == "auto" else (training.gradient_checkpointing,))
        for tokens in (budgets if training.micro_batch_size == "auto" or task.failed else budgets[:1])
    ]
    return [sizes for sizes in every if sizes not in task.failed]


def _most_tokens(task: Task, packing: Packing) -> int:
    """Of an `auto` micro batch: what is computed at full rate, and a step's tokens in as many parts as fill a pipeline."""
    most, stages = TOKENS[task.place.device.kind], task.recipe.parallel.pipeline
    if stages == 1:
        return most
    one_row = MicroBatchSize(rows=1, tokens=task.workload.longest, packing=packing)
    step = task.workload.survey(one_row, task.recipe.training.global_batch_size, _replicas(task)[0]).mean("places")
    return min(most, int(step / (FILLING * (stages - 1))))


def _engine(task: Task) -> tuple[Engine, str]:
    """What will compute the layers, by what is known without the model; `luthier.model.fuse` tries it."""
    recipe, shape = task.recipe, task.shape
    if task.engine != "predicted":
        return task.engine, "tried on this model"
    if recipe.model.attention != "auto":
        return "plain", f"model.attention is {recipe.model.attention}"
    if recipe.data.packing == "off":
        return "plain", SAID
    if shape.linear_attention_layers:
        return "plain", f"rows of a pack leak through {shape.linear_attention_layers} layers with a state"
    cpu = task.place.device.kind == "cpu"
    if shape.window and shape.window < task.workload.longest and not (cpu and shape.plain_head):
        return "plain", f"rows of up to {task.workload.longest} tokens are longer than the attention window, {shape.window}"
    plain_lora = isinstance(recipe.lora, Lora) and not recipe.lora.use_dora
    return ("fused" if cpu and plain_lora and shape.layers_like_llama else "packed"), "the fastest for this model"


def _packing(task: Task, engine: Engine, why: str) -> tuple[Packing, str]:
    wished = task.recipe.data.packing
    if task.begun != "none" and (engine != "plain" or task.begun.micro_batch.packing == "off"):
        return task.begun.micro_batch.packing, "as when the run began"
    if engine == "plain":
        if wished in ("tree", "bins"):
            change = "set data.packing: off, or auto" + ("; or model.attention: auto" if task.recipe.model.attention != "auto" else "")
            raise PlanRefused(f"rows cannot be packed: {why}", where="data.packing", change=change)
        return "off", why
    if wished != "auto":
        return wished, SAID
    share = task.workload.shared_share()
    return "tree" if share >= WORTH_A_TREE else "bins", f"{share:.0%} of the first steps' tokens stand at the start of another row as well"


def _dtype(task: Task) -> tuple[Dtype, str]:
    wanted, device = task.recipe.model.dtype, task.place.device
    if wanted != "auto":
        return wanted, SAID
    if device.kind == "cuda" and not device.bfloat16:
        return "float16", f"{device.name} has no bfloat16, and training scales float16's loss"
    # 2026-11-20, EPYC with AVX512-BF16, one thread, hidden 256 × 4 layers, LoRA r 16: 222 ms a step of 16 rows, float32 324 ms.
    return ("bfloat16", f"{device.name} computes bfloat16") if device.bfloat16 else ("float32", f"{device.name} has no bfloat16")


def _left_for(recipe: Recipe, devices: int) -> int:
    """Replicas that the recipe says, or that so many devices leave."""
    parallel = recipe.parallel
    return max(1, devices // (parallel.tensor * parallel.pipeline)) if parallel.data == "auto" else parallel.data


def _replicas(task: Task) -> tuple[int, str]:
    parallel, devices = task.recipe.parallel, task.place.count
    if parallel.data != "auto":
        return parallel.data, SAID
    if task.recipe.launch.gpu == "here":
        return 1, "one process trains on this machine"
    each = parallel.tensor * parallel.pipeline
    return _left_for(task.recipe, devices), f"{devices // each} times {each} of {devices} devices" if devices > 1 else "one device"


def _changes(task: Task) -> Iterator[tuple[Change, Task]]:
    """Changes that need less memory of a device, the cheapest first, and what they make of the task."""
    recipe, several = task.recipe, task.place.count > 1 and task.place.device.kind == "cuda"
    lora, training = recipe.lora != "none", recipe.training
    divisible = has_plan(task.shape) and not indivisible(task.shape, 2)
    wishes: list[tuple[bool, str, str | int | bool, str]] = [
        (training.micro_batch_size != 1, "training.micro_batch_size", 1, "the same update, in smaller pieces"),
        (
            training.gradient_checkpointing is not True,
            "training.gradient_checkpointing",
            True,
            "a third (all trained) to a half (LoRA) more time",
        ),
        (recipe.model.dtype == "float32", "model.dtype", "bfloat16" if task.place.device.bfloat16 else "float16", "half the bytes"),
        (lora and recipe.model.quantization in ("none", "int8"), "model.quantization", "nf4", "4-bit frozen weights (QLoRA)"),
        (several and recipe.parallel.shard != "zero3", "parallel.shard", "zero3", "each replica keeps its share of the weights"),
        (not lora and training.optimizer == "adamw", "training.optimizer", "adamw_8bit", "a quarter of the optimizer's state"),
        (several and recipe.parallel.tensor == 1 and divisible, "parallel.tensor", 2, "each matrix divided between two devices"),
        (several and recipe.parallel.pipeline == 1, "parallel.pipeline", 2, "the layers divided between two devices"),
    ]
    fresh = replace(task, begun="none", failed=(), failed_bytes=math.inf)
    if task.place.device.kind == "cpu" and recipe.parallel.nodes == 1 and (ranks := layout_of(recipe).devices) > 1:
        undivided = replace(task.place.device, memory_bytes=ranks * task.place.device.memory_bytes)
        whole = replace(task.place, device=undivided, count=1, free_bytes=ranks * task.place.free_bytes)
        change = Change(path="parallel.data", value=1, why="one process has all of the memory, and all threads")
        yield change, replace(fresh, recipe=_with(recipe, "parallel.data", 1), place=whole)
    for possible, path, value, why in wishes:
        changed = _with(recipe, path, value)
        if possible and layout_of(changed).devices <= max(task.place.count, layout_of(recipe).devices):
            yield Change(path=path, value=value, why=why), replace(fresh, recipe=changed)
    larger = [device for device in table().values() if device.memory_bytes > task.place.device.memory_bytes]
    for device in sorted(larger, key=_price_of_work):
        each = task.place.count // recipe.parallel.nodes
        name = device.id if each == 1 else f"{device.id}x{each}"
        price = "" if device.price_per_hour is None else f", ${device.price_per_hour:.2f} an hour each"
        place = Place(device=device, count=task.place.count, free_bytes=device.memory_bytes)
        why = f"{device.memory_bytes / 1e9:.0f} GB{price}"
        yield Change(path="launch.gpu", value=name, why=why), replace(fresh, recipe=_with(recipe, "launch.gpu", name), place=place)


def _price_of_work(device: Device) -> float:
    """Dollars for an exaoperation at the device's peak: what decides over the cost of a run that fits."""
    if device.price_per_hour is None:
        return math.inf
    return device.price_per_hour / 3600 / max(device.rates.values()) * 1e18


def _with(recipe: Recipe, path: str, value: str | int | bool) -> Recipe:
    section, _, field = path.partition(".")
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={field: value})})

"""Findings about how it is computed: number formats, the fast path, and how devices divide the model."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from luthier.core.finding import Change, Finding
from luthier.plan.check.case import Case, Check
from luthier.plan.check.words import count, gigabytes, percent
from luthier.plan.speed import stages
from luthier.plan.weights import optimizer_bytes
from luthier.recipe.schema import Lora

SMALL_SAVING = 0.05
"""Of the peak: less than what the ledger may err by."""
SLOWER = {"packed": 1.8, "plain": 4.8}
"""On a CPU, against fused layers over prefix trees: 1.75 / 0.96 and 4.6 / 0.96 seconds in the ablation of engine.md (2026-11-20)."""
IDLE = 0.2


def fast_path_off(case: Case) -> Iterator[Finding]:
    """The run does not take the fast path: rows are padded, or layers are not fused.

    Severity: warn where packing is switched off, note where DoRA or the model is the reason.

    On a CPU, Luthier computes the layers of Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE and Gemma itself, over packs without padding in which
    shared beginnings stand once; on a GPU it packs through transformers' layers. `attention: eager` or `sdpa` and `packing: off` pad
    rows; DoRA keeps PEFT's layers. LoRA dropout and quantised weights do *not* turn the fast path off: the mask is computed inside, and a
    matrix is unpacked for its product.

    Arithmetic: model S on a CPU, 16 rows: 4.6 s padded, 1.75 s in prefix trees through transformers' layers, 0.96 s fused: 4.8 × and
    1.8 × the fastest.

    What to do: leave `model.attention` and `data.packing` to `auto`. Packing is tried on the model first and is exact where it is used.

    Source: engine.md (ablation, 2026-11-20); docs/performance.md; seed 000 (docs/notes/seeds.md), whose packs were slow for another
    reason: int8 products of changing lengths.
    """
    recipe, engine = case.recipe, case.setup.engine
    best = "packed" if case.on_gpu or recipe.lora == "none" else "fused"
    if engine in (best, "fused"):
        return
    reasons, changes = [], []
    if recipe.model.attention != "auto":
        reasons.append(f"model.attention is {recipe.model.attention}")
        changes.append(Change(path="model.attention", value="auto", why="Luthier's own, which keeps the rows of a pack apart"))
    if recipe.data.packing == "off":
        reasons.append("data.packing is off")
        changes.append(Change(path="data.packing", value="auto", why="no place is computed for padding"))
    padded = bool(reasons)
    if isinstance(recipe.lora, Lora) and recipe.lora.use_dora and best == "fused":
        reasons.append("lora.use_dora is set")
        changes.append(Change(path="lora.use_dora", value=False, why="plain LoRA, tuned, is within 1 to 2 % of it (arXiv:2602.04998)"))
    waste = case.survey.mean("places") / case.survey.mean("tokens")
    padding = f"{waste:.2f} places are computed for each token" if waste > 1 else "rows are padded to the longest beside them"
    cost = padding if case.on_gpu else f"about {SLOWER[engine]} × the time"
    yield Finding(
        code="fast-path-off",
        severity="warn" if padded else "note",
        message=f"Layers are not computed the fastest way, because {'; '.join(reasons) or _of_the_model(case)}: {cost}",
        evidence={"engine": engine, "best": best, "places_per_token": round(waste, 3)},
        changes=tuple(changes),
    )


def bfloat16_emulated(case: Case) -> Iterator[Finding]:
    """The recipe computes in bfloat16 on a device that has no instructions for it.

    Severity: warn.

    Before Ampere (2020), NVIDIA's GPUs have none: T4 and V100 convert to float32 and back, at a fraction of the speed, or fail where a
    kernel wants them. CPUs have them since Cooper Lake, Zen 4 and Armv8.6.

    Arithmetic: a T4 computes 65 TFLOP/s in float16 and 8 in float32, and bfloat16 goes by way of float32.

    What to do: `model.dtype: float16` on such a GPU (Luthier scales the loss), float32 on such a CPU; `auto` never takes bfloat16 there.

    Source: seed 002 (docs/notes/seeds.md); NVIDIA's Turing whitepaper.
    """
    if case.setup.dtype != "bfloat16" or case.device.bfloat16:
        return
    value: Literal["float16", "float32"] = "float16" if case.on_gpu else "float32"
    yield Finding(
        code="bfloat16-emulated",
        severity="warn",
        message=f"{case.device.name} does not compute bfloat16: it is emulated, slowly; {value} is what it computes",
        evidence={"device": case.device.id, "operations_per_second": case.device.rates.get(value, 0.0)},
        changes=(Change(path="model.dtype", value=value, why=f"{case.device.id} computes it"),),
    )


def float16_on_cpu(case: Case) -> Iterator[Finding]:
    """The recipe computes in float16 on a CPU, where nothing scales the loss.

    Severity: refuse.

    float16 ends at 6e-5 (6e-8 with few digits): gradients below that become 0. On a GPU Luthier lifts them out of there by scaling the
    loss; on a CPU it does not, for products in float16 are slower there than in float32. transformers' Trainer ignores `fp16` on a CPU
    without a word.

    Arithmetic: a gradient of 1e-8 is 0 in float16, and 1.0e-8 in bfloat16, whose range is float32's.

    What to do: `model.dtype: auto`.

    Source: Micikevicius et al. 2018 (arXiv:1710.03740); engine.md on the Trainer.
    """
    if case.setup.dtype != "float16" or case.on_gpu:
        return
    yield Finding(
        code="float16-on-cpu",
        severity="refuse",
        message="float16 on a CPU loses small gradients, because nothing scales the loss there, and is slower than float32",
        evidence={"device": case.device.id},
        changes=(Change(path="model.dtype", value="auto", why="bfloat16 where the CPU computes it, else float32"),),
    )


def optimizer_8bit_pointless(case: Case) -> Iterator[Finding]:
    """An 8-bit optimizer saves next to nothing, because only the adapter is trained.

    Severity: note.

    Adam keeps two numbers for each trained parameter: 8 bytes, in 8 bits about 2. That is much where every weight is trained, and little
    beside the frozen weights where an adapter is. It costs a little exactness, and a dependency.

    Arithmetic: r 64 on all linear layers of Qwen3-4B are 132 M parameters: 1.06 GB of state, 0.26 GB in 8 bits: 0.8 of 28 GB, 3 %. Of
    the whole 4.02 G: 32 against 8 GB.

    What to do: `optimizer: adamw`.

    Source: Dettmers et al. 2022 (arXiv:2110.02861); seed 000 (docs/notes/seeds.md).
    """
    if case.recipe.lora == "none" or case.setup.optimizer == "adamw":
        return
    adamw = replace(case.setup, optimizer="adamw")
    plain = case.memory_of(adamw)
    stage = stages(case.shape, case.setup, case.survey)[0]
    saved = (
        optimizer_bytes(case.shape, replace(case.setup, optimizer="adamw"), stage)[0] - optimizer_bytes(case.shape, case.setup, stage)[0]
    )
    if saved >= SMALL_SAVING * plain.peak_bytes or not plain.fits:
        return
    yield Finding(
        code="optimizer-8bit-pointless",
        severity="note",
        message=f"{case.setup.optimizer} saves {gigabytes(saved)} of {gigabytes(plain.peak_bytes)} ({percent(saved / plain.peak_bytes)}), "
        "because only the adapter is trained",
        evidence={"saved_bytes": saved, "peak_bytes": plain.peak_bytes, "device_bytes": plain.device_bytes},
        changes=(Change(path="training.optimizer", value="adamw", why="exact, and it fits"),),
    )


def quantised_needlessly(case: Case) -> Iterator[Finding]:
    """The base is quantised, where its plain weights would fit.

    Severity: note.

    Luthier unpacks a stored matrix for each product with it, so quantised weights save memory and nothing else. Training hardly notices,
    for a matrix meets thousands of tokens at once. Writing an answer does: every token unpacks all of them. And the numbers are rounded:
    a weight is off by 0.7 % of a typical one in int8, by 9 % in nf4, by 12 % in fp4, which training learns to live with, in part.

    Arithmetic: 4.02 G parameters are 8.0 GB in bf16, about 4.4 GB in int8 and 2.7 GB in nf4 (head and embedding stay as they are). For a
    token, plain bf16 reads 2 B a weight; nf4 reads 0.52, writes 2 and reads 2. A training step on a CPU took 0.95 s with plain weights,
    0.98 with int8 and 0.88 with nf4; LLM.int8 of bitsandbytes under PEFT 1.81.

    What to do: no quantization where plain weights fit; where they do not, int8 before nf4, if it fits.

    Source: measured, docs/notes/quantize.md; Dettmers et al. 2023 (arXiv:2305.14314) on nf4; seed 000 (docs/notes/seeds.md), whose int8
    was LLM.int8 (arXiv:2208.07339), which rounds what enters a product, too, and was slow for it.
    """
    if case.setup.quantization == "none":
        return
    plain = case.memory_of(replace(case.setup, quantization="none"))
    if not plain.fits:
        return
    peaks = f"{gigabytes(plain.peak_bytes)} at the peak of {gigabytes(plain.device_bytes)}"
    yield Finding(
        code="quantised-needlessly",
        severity="note",
        message=f"{case.setup.quantization} saves memory that is not short: plain {case.setup.dtype} takes {peaks} "
        f"({case.setup.quantization} {gigabytes(case.memory.peak_bytes)}), exact, and faster where answers are written",
        evidence={"quantised_bytes": case.memory.peak_bytes, "plain_bytes": plain.peak_bytes, "device_bytes": case.memory.device_bytes},
        changes=(Change(path="model.quantization", value="none", why=f"{peaks}, and no weight is rounded"),),
    )


def paged_on_cpu(case: Case) -> Iterator[Finding]:
    """The optimizer is a paged one, on a processor.

    Severity: refuse.

    A paged optimizer keeps its state in memory that the driver moves between a GPU and the host when the GPU's is short. Without a GPU
    there is nothing to move; bitsandbytes would take the other without a word.

    Arithmetic: none.

    What to do: `adamw_8bit`, which is the same in memory that stays; or `adamw`.

    Source: bitsandbytes 0.50.2, `Optimizer8bit.get_state_buffer`; QLoRA (arXiv:2305.14314), section 3, on paging.
    """
    if case.setup.optimizer != "paged_adamw_8bit" or case.on_gpu:
        return
    yield Finding(
        code="paged-on-cpu",
        severity="refuse",
        message="paged_adamw_8bit moves its state between a GPU's memory and the host's, and there is no GPU: nothing can be paged",
        evidence={"device": case.device.id},
        changes=(Change(path="training.optimizer", value="adamw_8bit", why="the same in memory that stays"),),
    )


def optimizer_8bit_divided(case: Case) -> Iterator[Finding]:
    """The optimizer's state is in blocks, which ranks that divide weights would cut.

    Severity: refuse.

    bitsandbytes keeps both of Adam's averages in 8 bits, in blocks of 256 numbers with a scale each. Tensor parallelism and shards give
    each rank pieces of the trained matrices that begin and end within blocks: other numbers would share a scale, and a run that goes on
    with other ranks could not read its state.

    Arithmetic: adamw has 8 B a trained number, divided among n ranks 8 / n; adamw_8bit has 2 B a number on each.

    What to do: `adamw`, whose state is divided.

    Source: Dettmers et al. 2021 (arXiv:2110.02861), section 2.1; bitsandbytes 0.50.2, `Optimizer8bit.init_state`.
    """
    optimizer, layout = case.recipe.training.optimizer, case.setup.layout
    if optimizer == "adamw" or not layout.divided:
        return
    divided = f"parallel.tensor: {layout.tensor}" if layout.tensor > 1 else f"parallel.shard: {layout.shard}"
    yield Finding(
        code="optimizer-8bit-divided",
        severity="refuse",
        message=f"{optimizer} keeps its state in blocks of 256 numbers, which {divided} would cut",
        evidence={"optimizer": optimizer, "tensor": layout.tensor, "shard": layout.shard},
        changes=(Change(path="training.optimizer", value="adamw", why="its state is divided instead"),),
    )


def quantization_unplanned(case: Case) -> Iterator[Finding]:
    """The base is quantised, and yet divided among devices as if it were not.

    Severity: warn.

    Tensor and pipeline parallelism are for models that one device cannot hold; they cost an exchange in every layer, or idle time.
    Quantised, this one fits a single device, and the devices would do more as replicas that divide the rows.

    Arithmetic: 30.5 G parameters are 61 GB in bf16: divided by 2, 31 GB a device, not 70. If all of it were in 4 bits it would be 17 GB.

    What to do: `tensor: 1`, `pipeline: 1`, and as many replicas as there are devices.

    Source: seed 001 (docs/notes/seeds.md), which claims 4 bits and plans 70 GB a device.
    """
    layout = case.setup.layout
    parts = layout.tensor * layout.pipeline
    if case.setup.quantization == "none" or parts == 1:
        return
    whole = case.memory_of(replace(case.setup, layout=replace(layout, tensor=1, pipeline=1, data=layout.data * parts)))
    if not whole.fits:
        return
    changes = [Change(path=f"parallel.{name}", value=1, why="one device holds the model") for name in ("tensor", "pipeline")]
    if case.recipe.parallel.data != "auto":
        changes.append(Change(path="parallel.data", value=layout.data * parts, why="all devices divide the rows"))
    yield Finding(
        code="quantization-unplanned",
        severity="warn",
        message=f"In {case.setup.quantization}, the whole model trains on one device ({gigabytes(whole.peak_bytes)} of "
        f"{gigabytes(whole.device_bytes)}), and yet it is divided among {parts}",
        evidence={"peak_bytes": whole.peak_bytes, "device_bytes": whole.device_bytes, "tensor": layout.tensor, "pipeline": layout.pipeline},
        changes=tuple(changes),
    )


def more_ranks_than_devices(case: Case) -> Iterator[Finding]:
    """The recipe's replicas and divisions need more devices than there are.

    Severity: refuse on this machine; warn where devices are rented, which can be more.

    data × tensor × pipeline ranks each need a device of their own: NCCL refuses two ranks on one GPU. Ranks on one processor divide its
    memory and its cores, and so can be as many as the cores.

    Arithmetic: data 4 × tensor 2 are 8 ranks; `H200x4` are 4 devices.

    What to do: as many replicas as there are devices for.

    Source: NCCL ("Duplicate GPU detected").
    """
    layout, there = case.setup.layout, case.num_devices
    if layout.devices <= there:
        return
    parts = layout.tensor * layout.pipeline
    noun = "device" if case.on_gpu else "core"
    changes = [Change(path="parallel.data", value=max(1, there // parts), why=f"{count(there, noun)}, {parts} for each replica")]
    if parts > there:
        changes += [Change(path=f"parallel.{name}", value=1, why="there are not so many") for name in ("tensor", "pipeline")]
    if case.host == "elsewhere":
        each = -(-layout.devices // case.recipe.parallel.nodes)
        changes = [Change(path="launch.gpu", value=f"{case.device.id}x{each}", why="a device for each rank")]
    yield Finding(
        code="more-ranks-than-devices",
        severity="warn" if case.host == "elsewhere" else "refuse",
        message=f"data {layout.data} × tensor {layout.tensor} × pipeline {layout.pipeline} are {layout.devices} ranks, and there "
        f"{'is' if there == 1 else 'are'} {count(there, noun)}",
        evidence={"ranks": layout.devices, "devices": there},
        changes=tuple(changes),
    )


def pipeline_bubble(case: Case) -> Iterator[Finding]:
    """Devices of a pipeline wait for more than a fifth of each step.

    Severity: warn.

    The first micro batch reaches the last of p devices after p − 1 others have had it; with m micro batches a step, each device is idle
    for (p − 1) / (m + p − 1) of it. With one micro batch, as `device_map` does it, devices take turns.

    Arithmetic: p = 2: m = 1 → 50 %, m = 4 → 20 %, m = 16 → 6 %.

    What to do: smaller micro batches, or a larger global batch; or replicas, where one device holds the model.

    Source: GPipe (arXiv:1811.06965), section 2; seed 000 (docs/notes/seeds.md): "GPUs take turns".
    """
    stages, micro_batches = case.setup.layout.pipeline, case.survey.micro_batches
    idle = (stages - 1) / (micro_batches + stages - 1)
    if stages == 1 or idle <= IDLE:
        return
    wanted = 4 * (stages - 1)
    longest = max(extent.longest for extent in case.survey.heaviest)
    padded = case.setup.micro_batch.packing == "off"
    rows = case.rows_per_rank // wanted if padded else int(case.survey.mean("places") / wanted / longest)
    change = Change(path="training.micro_batch_size", value=rows, why=f"{wanted} micro batches: 20 % idle at most")
    yield Finding(
        code="pipeline-bubble",
        severity="warn",
        message=f"With {micro_batches:.3g} micro batches a step, each of {stages} pipeline stages is idle for {percent(idle)} of it",
        evidence={"stages": stages, "micro_batches": round(micro_batches, 2), "idle_share": round(idle, 3)},
        changes=(change,) if rows else (),
    )


CHECKS: tuple[Check, ...] = (
    fast_path_off,
    bfloat16_emulated,
    float16_on_cpu,
    optimizer_8bit_pointless,
    paged_on_cpu,
    optimizer_8bit_divided,
    quantised_needlessly,
    quantization_unplanned,
    more_ranks_than_devices,
    pipeline_bubble,
)


def _of_the_model(case: Case) -> str:
    """Why this model or its format keeps transformers' own layers."""
    if case.shape.linear_attention_layers:
        return f"rows of a pack would leak through {case.shape.linear_attention_layers} layers with a state"
    return f"{case.shape.model_type} is not among the models whose layers Luthier knows"

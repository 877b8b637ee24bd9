"""Operations, time and money of a run.

A product of T rows with a matrix [d_out, d_in] is 2·T·d_in·d_out operations; N are the numbers of all matrices below the head that a token
is multiplied with (an expert only if the token is sent to it). Then, for each token that is computed:

    forward 2N · gradient of the inputs 2N · gradient of the weights 2N where they are trained
    frozen with LoRA 4N, all trained 6N; an adapter's P numbers, whatever their rank, 6P (forward, its input's gradient, its own)
    recomputing activations: 2N and 2P once more

Qwen2.5-7B, N = 6.53 G, r 16 on all of it (P = 40 M): 4 · 6.53 + 6 · 0.04 = 26.3 GFLOP a token. Not computed is the gradient of what enters
the first layer where the embedding is frozen, and after the last layer's attention Luthier's own layers compute only the tokens that a
target is predicted from (`tests/plan/test_speed.py` compares with torch's own count). Sums, norms and the optimizer multiply no matrices.
"""

from dataclasses import dataclass, replace
from typing import Literal

from luthier.core.errors import PlanRefused
from luthier.plan.adapted import adapted, adapter_parameters
from luthier.plan.setup import Layout, Setup
from luthier.plan.shape import Linear, ModelShape
from luthier.plan.steps import Steps
from luthier.plan.weights import Stage, undivided
from luthier.runs.workload import Extent, Survey

ATTENTION_FORWARD, ATTENTION_BACKWARD = 4, 10
"""Operations for each pair of a query and a key that it sees, and each number of a query's heads: scores and values, 2 products; backward
the scores again and 4 gradients, 5 products, as FlashAttention does (arXiv:2307.08691). Qwen3-4B, a row of 1,000: 500,500 pairs · 4,096
numbers · 36 layers · 14 = 1.0 TFLOP, beside 14.5 for its matrices."""
CHUNK = 64
"""Tokens that linear attention takes together."""
AFTER_ATTENTION = frozenset({"o_proj", "out_proj"})
"""What reads attention's output; the other matrices of attention read the layer's input."""
TENSOR_EFFICIENCY = {1: 1.0, 2: 0.907, 4: 0.865, 8: 0.796}
"""Of so many devices that divide each matrix, over NVLink: Megatron-LM on a DGX-2H (nv-adlr.github.io/MegatronLMV1, table 1)."""
DATA_EFFICIENCY = 0.95
"""Of replicas: they wait for the slowest of them and add up gradients. A guess; adapters are small."""
SHARDED_EFFICIENCY = 0.85
"""Of replicas that fetch weights from each other (zero3). A guess for NVLink; over PCIe it is far less."""
LAUNCH_SECONDS, KERNELS_PER_LAYER = 5e-6, 150
"""Of one kernel, and how many a layer takes forward and backward: 7 matrices with adapters, norms, attention, gate. A guess."""
SAVE_SECONDS, SAVE_BYTES_PER_SECOND = 0.03, 250e6
"""Of one checkpoint: flushes to disk, and writing and hashing its bytes. 17 MB took 0.04–0.13 s (2026-11-20, one virtual disk); others are
5 × faster or slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Low, mid, high."""

    low: float
    mid: float
    high: float

    def times(self, factor: float) -> "Range":
        """Each of them."""
        return Range(low=self.low * factor, mid=self.mid * factor, high=self.high * factor)


NOTHING = Range(low=0.0, mid=0.0, high=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """Seconds that answers take to be written in the middle of a run (`luthier.plan.scoring`)."""

    validation: Range = NOTHING
    """Of one validation, where a task or a reward decides what is best."""
    step: Range = NOTHING
    """Of one step, where it learns from answers that are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Operations a second that a device reaches, and where the number is from."""

    flops: Range
    source: str
    """`earlier runs (3)`, `probe`, or `H100: 30–55 % of 989 TFLOP/s`."""
    measured: bool = True
    """By a run or a probe on such a device, and not a guess, or a share of what its maker promises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """Seconds of a whole run, from its first step on: loading and preparing come before."""

    total: Range
    step: float
    """Seconds of a step, mid, with drawing what it learns from."""
    validation: float
    """Of all validations together, mid, a task's answers with them."""
    saves: float
    """Of all saves together, mid."""
    operations_per_step: float
    """Of one replica."""
    rate: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Operations of all layers."""

    forward: float
    backward: float


def operations(shape: ModelShape, setup: Setup, extent: Extent) -> float:
    """Of training on one micro batch, forward and backward, by all devices of a replica."""
    layers = _layers(shape, setup, extent)
    again = layers.forward if setup.checkpoint_activations else 0.0
    return layers.forward + again + layers.backward + _head(shape, setup, extent, directions=3 if setup.lora == "none" else 2)


def validation_operations(shape: ModelShape, setup: Setup, extent: Extent) -> float:
    """Of one micro batch without gradients."""
    return _layers(shape, setup, extent).forward + _head(shape, setup, extent, directions=1)


def operations_per_step(shape: ModelShape, setup: Setup, survey: Survey) -> float:
    """Of one replica's micro batches, on average over the steps that were surveyed."""
    return sum(operations(shape, setup, extent) for step in survey.steps for extent in step) / len(survey.steps)


def estimate(shape: ModelShape, setup: Setup, survey: Survey, steps: Steps, rate: Rate, writing: Writing = Writing()) -> Time:
    """How long a run takes from its first step to its last, validations and saves with it, where one device reaches `rate`.

    Replicas divide a step's rows, which the survey has done; tensor and pipeline parallelism divide a micro batch's work, at the
    efficiency of `layout_efficiency`. 879 steps of 21 s are 5.1 h (seed 000 wrote 7).
    """
    per_step = operations_per_step(shape, setup, survey)
    validation = sum(validation_operations(shape, setup, extent) for extent in survey.validation) / survey.validation_share
    gain = layout_efficiency(setup.layout, survey.micro_batches) * setup.layout.tensor * _stages_at_once(shape, setup, survey)
    work = (per_step * steps.total + validation / setup.layout.data * len(steps.evaluations)) / gain
    saves = len(steps_saved(steps)) * save_seconds(shape, setup)
    step = max(per_step / gain / rate.flops.mid, _launches(shape, setup) * survey.micro_batches)
    slower = step / (per_step / gain / rate.flops.mid)
    answers, drawn = writing.validation.times(len(steps.evaluations)), writing.step.times(steps.total)
    return Time(
        total=Range(
            low=work * slower / rate.flops.high + saves + answers.low + drawn.low,
            mid=work * slower / rate.flops.mid + saves + answers.mid + drawn.mid,
            high=work * slower / rate.flops.low + saves + answers.high + drawn.high,
        ),
        step=step + writing.step.mid,
        validation=slower * validation / setup.layout.data * len(steps.evaluations) / gain / rate.flops.mid + answers.mid,
        saves=saves,
        operations_per_step=per_step,
        rate=rate,
    )


def stages(shape: ModelShape, setup: Setup, survey: Survey) -> tuple[Stage, ...]:
    """The stages of a pipeline, so that none waits for another that has more to do; raises PlanRefused for more of them than layers.

    Layer by layer goes to the stage with the fewest operations, of which the last has the head's from the start; of equal ones to the
    latest, which keeps the fewest micro batches. Every layer counts as the mean of all. Neither packing nor the engine matter: what a
    trial of the loaded model changes in them moves no layer. Qwen3-0.6B, 28 layers, 40 % of the tokens supervised: its head does as much
    as four of them, so 16 and 12.
    """
    depth = setup.layout.pipeline
    if depth == 1:
        return (undivided(shape),)
    if depth > shape.num_layers:
        what = f"{shape.num_layers} layers cannot be divided among {depth} stages"
        raise PlanRefused(what, where="parallel.pipeline", change=f"set parallel.pipeline to at most {shape.num_layers}")
    counts = _layers_of_stages(depth, shape.num_layers, _head_in_layers(shape, setup, survey))
    starts = [sum(counts[:index]) for index in range(depth)]
    return tuple(
        Stage(start=start, layers=count, num_layers=shape.num_layers, in_flight=depth - index)
        for index, (start, count) in enumerate(zip(starts, counts, strict=True))
    )


def _layers_of_stages(depth: int, num_layers: int, head: float) -> list[int]:
    """How many layers each has, where the head does as much as `head` of them."""
    counts = [1] * depth
    for _ in range(num_layers - depth):
        counts[min(range(depth), key=lambda index: (counts[index] + (head if index == depth - 1 else 0.0), -index))] += 1
    return counts


def _head_in_layers(shape: ModelShape, setup: Setup, survey: Survey) -> float:
    """Operations of the head over those of a layer, by the rows as they are: unpadded, unshared, and in all layers whole."""
    rows, tokens, supervised = (round(survey.mean(what)) for what in ("rows", "tokens", "supervised"))
    pairs = tokens * (tokens // rows + 1) // 2
    step = Extent(
        rows=rows,
        tokens=tokens,
        supervised=supervised,
        places=tokens,
        needed=supervised,
        targets=supervised,
        pairs=pairs,
        longest=tokens // rows,
    )
    plain = replace(setup, engine="plain")
    head = _head(shape, plain, step, directions=3 if setup.lora == "none" else 2)
    return head * shape.num_layers / (operations(shape, plain, step) - head)


def _stages_at_once(shape: ModelShape, setup: Setup, survey: Survey) -> float:
    """How many stages a pipeline is as fast as, once it is full: all of them, where each has as much to do."""
    if setup.layout.pipeline == 1:
        return 1.0
    head = _head_in_layers(shape, setup, survey)
    return (shape.num_layers + head) / max(stage.layers + head * stage.last for stage in stages(shape, setup, survey))


def _launches(shape: ModelShape, setup: Setup) -> float:
    """Seconds that a GPU's launches alone take of one micro batch: 36 layers × 150 × 5 µs = 27 ms."""
    return 0.0 if setup.device == "cpu" else shape.num_layers * KERNELS_PER_LAYER * LAUNCH_SECONDS


def steps_saved(steps: Steps) -> tuple[int, ...]:
    """Those that are saved as planned, and those with a validation, each of which may find a new best and save it."""
    return tuple(sorted({*steps.saves, *steps.evaluations}))


def cost(time: Time, layout: Layout, price_per_hour: float) -> Range:
    """US dollars of all devices: 5.1 h of two at 0.91 are 9.28."""
    return time.total.times(price_per_hour / 3600 * layout.devices)


def layout_efficiency(layout: Layout, micro_batches: float) -> float:
    """What share of its devices' work a layout gets done, 0 to 1. A pipeline of p stages and m micro batches idles for (p-1)/(m+p-1) of the
    time (GPipe, arXiv:1811.06965): 2 stages and 8 micro batches 11 %."""
    known = [size for size in TENSOR_EFFICIENCY if size <= layout.tensor]
    replicas = SHARDED_EFFICIENCY if layout.shard == "zero3" else DATA_EFFICIENCY
    bubble = micro_batches / (micro_batches + layout.pipeline - 1)
    return TENSOR_EFFICIENCY[max(known)] * bubble * (replicas if layout.data > 1 else 1.0)


def save_seconds(shape: ModelShape, setup: Setup) -> float:
    """Of one checkpoint: what is trained in float32, and the optimizer's two numbers for each of them. r 16 on all of Qwen2.5-7B: 40 M
    · 12 B = 0.48 GB, 2 s."""
    trained = shape.parameters if setup.lora == "none" else adapter_parameters(shape, setup.lora)
    state = 8 if setup.optimizer == "adamw" else 2
    return SAVE_SECONDS + trained * (4 + state) / SAVE_BYTES_PER_SECOND


def _layers(shape: ModelShape, setup: Setup, extent: Extent) -> _Work:
    forward = backward = 0.0
    with_adapter = set(adapted(shape, setup.lora)) if setup.lora != "none" else set()
    for linear in shape.linears:
        if linear.role == "head":
            continue
        places = _places(linear, shape, setup, extent)
        product = 2.0 * places * linear.active * linear.d_in * linear.d_out
        into_input = _share_with_input_gradient(linear, shape, setup)
        forward += product
        backward += product * into_input + (product if setup.lora == "none" else 0.0)
        if setup.lora != "none" and linear in with_adapter:
            wide = 2.0 * places * linear.active * setup.lora.r
            forward += wide * (linear.d_in + linear.d_out)
            backward += wide * (linear.d_in + 2 * linear.d_out + into_input * linear.d_in)
    mixed = _mixing(shape, extent)
    return _Work(forward=forward + ATTENTION_FORWARD * mixed, backward=backward + ATTENTION_BACKWARD * mixed)


def _places(linear: Linear, shape: ModelShape, setup: Setup, extent: Extent) -> float:
    """Rows of this matrix' products, on average over the layers: those of the last are fewer."""
    if setup.engine != "fused" or (linear.role == "attention" and linear.name not in AFTER_ATTENTION):
        return extent.places
    return extent.places - (extent.places - extent.needed) / shape.num_layers


def _share_with_input_gradient(linear: Linear, shape: ModelShape, setup: Setup) -> float:
    """Of the layers: the first one's input is the frozen embedding, whose gradient nobody needs; PEFT asks for it under checkpointing."""
    first: Literal["attention", "linear_attention"] = "linear_attention" if shape.linear_attention_layers else "attention"
    if setup.lora == "none" or setup.checkpoint_activations or linear.role != first or linear.name in AFTER_ATTENTION:
        return 1.0
    return 1 - 1 / (shape.linear_attention_layers or shape.num_layers)


def _mixing(shape: ModelShape, extent: Extent) -> float:
    """What attention mixes: pairs times a query's numbers over all layers. A sliding layer sees at most `window` keys, and linear attention
    costs about as much as CHUNK keys and its state's numbers for each token."""
    seen = extent.pairs if shape.window is None or extent.longest <= shape.window else min(extent.pairs, extent.places * shape.window)
    mixed = float(shape.query_width) * (extent.pairs * shape.full_attention_layers + seen * shape.sliding_layers)
    if delta := shape.linear_attention:
        states = delta.value_heads * delta.value_width * (delta.key_width + CHUNK)
        mixed += float(extent.places) * states * shape.linear_attention_layers
    return mixed


def _head(shape: ModelShape, setup: Setup, extent: Extent, directions: Literal[1, 2, 3]) -> float:
    """Logits where a target is: 2·hidden·vocabulary in each direction. Qwen3's 1,024 · 151,936: 0.31 GFLOP a row forward.

    The ranks of tensor parallelism compute it each for itself.
    """
    rows = extent.targets if setup.chunked_head else extent.needed
    return 2.0 * directions * rows * shape.hidden * shape.vocabulary * setup.layout.tensor

"""What lies in a device's memory from load to end: weights by storage format, the adapter, gradients and optimizer state."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from luthier.plan.adapted import adapted, adapter_parameters, experts_adapters
from luthier.plan.families import HALVES, SECOND_HALVES
from luthier.plan.lines import Line
from luthier.plan.setup import DTYPE_BYTES, Quantization, Setup
from luthier.plan.shape import Linear, ModelShape

BLOCK, NESTED_BLOCK = 64, 256
"""QLoRA's: numbers that share a 4-bit constant (float32); and with double quantisation, constants of a byte that share one."""
PLACE = 16
"""Bytes that a stored matrix takes a whole number of: the next expert's begins where a GPU reads at once."""
QUANTIZED_AT_ONCE = 1 << 22
"""Numbers, whole blocks: bitsandbytes takes some 20 bytes for each while it quantises them on a CPU (`luthier.model.quantize`)."""
EIGHT_BIT_BLOCK, EIGHT_BIT_LEAST = 256, 4096
"""bitsandbytes' 8-bit optimizers: numbers of a state that share a float32 constant; smaller tensors keep their state in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The part of the model that one device of a pipeline has; without a pipeline it is the first and the last at once."""

    start: int
    """Its first layer."""
    layers: int
    num_layers: int
    """Of the model."""
    in_flight: int
    """Micro batches whose activations it keeps at once: 1F1B's first stage as many as there are stages, the last one."""

    @property
    def stop(self) -> int:
        """The layer after its last."""
        return self.start + self.layers

    @property
    def first(self) -> bool:
        """It has the embedding."""
        return self.start == 0

    @property
    def last(self) -> bool:
        """It has the head."""
        return self.stop == self.num_layers


def undivided(shape: ModelShape) -> Stage:
    """The only stage of a model that is not divided."""
    return Stage(start=0, layers=shape.num_layers, num_layers=shape.num_layers, in_flight=1)


def quantized_bytes(kind: Literal["int8", "nf4", "fp4"], double_quant: bool, rows: int, columns: int) -> int:
    """Of a matrix as `luthier.model.quantize` stores it, its constants included: int8 has a float32 for each row, nf4 and fp4 have one for
    each block, or with double quantisation a byte for each block, a float32 for each 256 of these, and one more.

    4,096 × 4,096 in nf4: 8,388,608 + 1,048,576 = 9,437,184 B, 0.5625 B a weight; with double quantisation 8,388,608 + 262,144 + 4,100 and
    12 to fill the last place: 8,654,864 B, 0.5159 (QLoRA, arXiv:2305.14314: 0.127 bits a weight).
    """
    blocks = -(-rows * columns // BLOCK)
    if kind == "int8":
        size = rows * columns + 4 * rows
    elif double_quant:
        size = blocks * BLOCK // 2 + blocks + 4 * -(-blocks // NESTED_BLOCK) + 4
    else:
        size = blocks * BLOCK // 2 + 4 * blocks
    return -(-size // PLACE) * PLACE


def matrix_bytes(linear: Linear, quantization: Quantization, double_quant: bool, dtype_bytes: int) -> int:
    """Of one such matrix, in few bits where `model.quantization` reaches it."""
    if quantization == "none" or not linear.is_quantized:
        return linear.d_in * linear.d_out * dtype_bytes
    return quantized_bytes(quantization, double_quant, linear.d_out, linear.d_in)


def stored_weights(shape: ModelShape, setup: Setup, stage: Stage) -> tuple[Line, ...]:
    """A stage's weights on one device, format by format. Embedding, head, routers and vectors are neither quantised nor divided by tensor
    parallelism (docs/notes/tensor.md).

    Trained weights are float32. Qwen2.5-7B, 7.62 G: 30.5 GB in float32, 15.2 GB in bfloat16, 5.5 GB in nf4 with double quantisation.
    """
    lora, layout = setup.lora != "none", setup.layout
    size = DTYPE_BYTES[setup.dtype] if lora else 4
    share = stage.layers / stage.num_layers
    below = [item for item in shape.linears if item.role != "head" and (item.role != "vision" or stage.first)]
    matrices = [item for item in below if item.is_quantized]
    routers = [item for item in below if not item.is_quantized]
    replicas = layout.data if layout.shard == "zero3" or (layout.shard == "zero2" and not lora) else 1
    over = f" / {replicas} devices" if replicas > 1 else ""
    cut = [item for item in matrices if item.divided or layout.tensor == 1]
    whole = [item for item in matrices if item not in cut]
    found = [_matrices(cut, setup, size, share, layout.tensor, replicas)]
    if whole:
        line = _matrices(whole, setup, size, share, 1, replicas)
        found.append(replace(line, name=f"{line.name}, not divided"))
    if routers:
        number = round(share * sum(item.parameters for item in routers))
        told = f"{number:,} × {size} B{over}"
        found.append(Line(kind="weights", name="routers", bytes=round(number * size / replicas), formula=told))
    tables = (1 if stage.first else 0) + (1 if stage.last and not (shape.tied and stage.first) else 0)
    if tables:
        name = "embedding and head" if stage.first and stage.last else "embedding" if stage.first else "head"
        told = f"{tables} × {shape.vocabulary:,} × {shape.hidden:,} × {size} B{over}" + (", tied" if shape.tied else "")
        found.append(Line(kind="weights", name=name, bytes=round(tables * shape.embedding_parameters * size / replicas), formula=told))
    other = round(share * shape.other_parameters)
    told = f"{other:,} × {size} B" + (f" / {replicas} replicas" if replicas > 1 else "")
    found.append(Line(kind="weights", name="norms, biases", bytes=round(other * size / replicas), formula=told))
    return tuple(item for item in found if item.bytes)


def _matrices(modules: list[Linear], setup: Setup, size: int, share: float, tensor: int, replicas: int) -> Line:
    """Linear layers and experts below the head, divided so. `share` is this stage's. Each rank quantises its part of a matrix."""
    number, devices = sum(item.parameters for item in modules), tensor * replicas
    parts = _as_stored(item.part(tensor) for item in modules)
    total = sum(item.count * matrix_bytes(item, setup.quantization, setup.double_quant, size) for item in parts)
    told = f"{number:,} × {tensor * total / max(1, number):.6g} B"
    name = "matrices" if setup.quantization == "none" else f"matrices in {setup.quantization}"
    over = f" / {devices} devices" if devices > 1 else ""
    return Line(kind="weights", name=name, bytes=round(total * share / replicas), formula=told + over)


def _as_stored(modules: Iterable[Linear]) -> Iterator[Linear]:
    """Gate and up of an expert are one matrix."""
    for item in modules:
        if item.fused and item.name in SECOND_HALVES:
            continue
        yield replace(item, d_out=2 * item.d_out) if item.fused and item.name in HALVES else item


def trained_numbers(shape: ModelShape, setup: Setup, stage: Stage) -> int:
    """Numbers that one device trains, before gradients and optimizer are divided among replicas: the adapter's, or its part of the model.

    Under tensor parallelism one half of each adapter is whole on every device; and of the model embedding, head, routers and vectors are.
    """
    if setup.lora != "none":
        return round(adapter_parameters(shape, setup.lora, setup.layout.tensor) * stage.layers / stage.num_layers)
    tables = shape.embedding_parameters * ((1 if stage.first else 0) + (1 if stage.last and not (shape.tied and stage.first) else 0))
    below = sum(item.part(setup.layout.tensor).parameters for item in shape.linears if item.role != "head")
    return round((below + shape.other_parameters) * stage.layers / stage.num_layers + tables)


def largest_trained(shape: ModelShape, setup: Setup) -> int:
    """Numbers of the largest tensor that is trained: what a check of all values, or a gradient on its way, takes at once."""
    if setup.lora == "none":
        parts = [item.part(setup.layout.tensor) for item in shape.linears]
        return max(shape.embedding_parameters, *(item.d_in * item.d_out for item in parts))
    return max(setup.lora.r * max(item.d_in, item.d_out) for item in adapted(shape, setup.lora))


def optimizer_bytes(shape: ModelShape, setup: Setup, stage: Stage) -> tuple[int, str]:
    """AdamW's two moments, and their formula: 8 B a number in float32, or 2 B and constants in 8 bits."""
    numbers = trained_numbers(shape, setup, stage)
    if setup.optimizer == "adamw":
        return 8 * numbers, f"{numbers:,} × 8 B"
    each = 2 + 8 / EIGHT_BIT_BLOCK
    small = _small(shape, setup) if setup.lora != "none" else round(shape.other_parameters * stage.layers / stage.num_layers)
    large = numbers - small
    return round(large * each + small * 8), f"{large:,} × {each:.5g} B + {small:,} in tensors of less than {EIGHT_BIT_LEAST:,} × 8 B"


def _small(shape: ModelShape, setup: Setup) -> int:
    """Numbers of the adapter in tensors that 8-bit optimizers leave in float32."""
    if setup.lora == "none":
        return shape.other_parameters
    rank = setup.lora.r
    parts = [item.part(setup.layout.tensor) for item in adapted(shape, setup.lora)]
    halves = [(item.count, rank * width) for item in parts for width in (item.d_in, item.d_out)]
    return sum(count * numbers for count, numbers in halves if numbers < EIGHT_BIT_LEAST)


def products_numbers(shape: ModelShape, setup: Setup, stage: Stage, *, everything: bool) -> int:
    """Numbers of the matrices that are multiplied with: all of the stage's, or one layer's and the head's."""
    below = sum(item.part(setup.layout.tensor).parameters for item in shape.linears if item.role not in ("head", "vision"))
    head = shape.embedding_parameters if stage.last else 0
    layers = stage.layers if everything else 1
    return round(below * layers / stage.num_layers + head)


def gathered(shape: ModelShape, setup: Setup, stage: Stage) -> Line:
    """What replicas that divide it put together while a micro batch is computed (`luthier.model.shard`).

    zero2: all that is trained. zero3: a layer, as it is computed and as it came, with its adapter; and the embedding that is also the head.
    """
    layout, lora = setup.layout, setup.lora != "none"
    if layout.shard == "none" or layout.data == 1:
        return Line(name="gathered weights", kind="transient", bytes=0, formula="nothing is divided")
    trained = trained_numbers(shape, setup, stage)
    if layout.shard == "zero2":
        return Line(name="gathered weights", kind="transient", bytes=4 * trained, formula=f"{trained:,} × 4 B")
    size = DTYPE_BYTES[setup.dtype] if lora else 4
    numbers = layer_numbers(shape, setup)
    parts = _as_stored(item.part(layout.tensor) for item in shape.linears if item.role not in ("head", "vision"))
    each = sum(item.count * matrix_bytes(item, setup.quantization, setup.double_quant, size) for item in parts) / shape.num_layers / numbers
    adapter = 4 * trained // stage.layers if lora else 0
    table = shape.embedding_parameters * size if shape.tied else 0
    formula = f"2 × (a layer of {numbers:,} × {each:.4g} B" + (f" + its adapter of {adapter:,} B)" if lora else ")")
    told = formula + (f" + {shape.vocabulary:,} × {shape.hidden:,} × {size} B" if table else "")
    return Line(name="gathered weights", kind="transient", bytes=round(2 * (numbers * each + adapter) + table), formula=told)


def gathered_head(shape: ModelShape, setup: Setup) -> Line:
    """Under zero3, and where it is not the embedding: as it is computed with and as it came."""
    whole = setup.layout.shard != "zero3" or setup.layout.data == 1 or shape.tied
    size = DTYPE_BYTES[setup.dtype] if setup.lora != "none" else 4
    formula = f"2 × {shape.vocabulary:,} × {shape.hidden:,} × {size} B"
    bytes_ = 0 if whole else 2 * shape.embedding_parameters * size
    return Line(name="gathered head", kind="transient", bytes=bytes_, formula=formula)


def layer_numbers(shape: ModelShape, setup: Setup) -> int:
    """Of one layer's weights on one device, before replicas divide them."""
    parts = [item.part(setup.layout.tensor) for item in shape.linears if item.role not in ("head", "vision")]
    return sum(item.parameters for item in parts) // shape.num_layers


def in_numbers(shape: ModelShape, setup: Setup) -> tuple[Line, ...]:
    """What products with stored matrices take for a moment: the largest matrix in the compute type (on a GPU int8's by way of float32),
    and of a mixture the adapters of one layer's experts in that type, and their gradients."""
    size, lines = DTYPE_BYTES[setup.dtype], list[Line]()
    if setup.quantization != "none":
        parts = _as_stored(item.part(setup.layout.tensor) for item in shape.linears if item.is_quantized)
        largest = max(item.d_in * item.d_out for item in parts)
        each = size + (4 if setup.quantization == "int8" and setup.device == "cuda" else 0)
        lines.append(Line(name="a matrix in numbers", kind="transient", bytes=each * largest, formula=f"{largest:,} × {each} B"))
    of_experts = experts_adapters(shape, setup.lora, setup.layout.tensor) // max(1, shape.mixture_layers) if setup.lora != "none" else 0
    if of_experts:
        told = f"{of_experts:,} × ({size} + 4) B"
        lines.append(Line(name="adapters of a layer's experts", kind="transient", bytes=(size + 4) * of_experts, formula=told))
    return tuple(lines)


def loading(shape: ModelShape, setup: Setup) -> Line:
    """What loading needs besides the weights: each is read at its turn, and cast or stored in few bits where it stays.

    Experts come one by one, twice: as they are read, and as one. On a CPU bitsandbytes takes 20 bytes for each of 4 million numbers.
    """
    size = DTYPE_BYTES[setup.dtype] if setup.lora != "none" else 4
    matrices = [item for item in _as_stored(shape.linears) if item.role != "head"]
    stacks = [2 * shape.experts * item.d_in * item.d_out for item in matrices if item.fused]
    largest = max([item.d_in * item.d_out for item in matrices] + stacks)
    if setup.quantization != "none":
        working = 20 * QUANTIZED_AT_ONCE if setup.device == "cpu" else 0
        told = f"{largest:,} × {size} B" + (f" + {QUANTIZED_AT_ONCE:,} × 20 B" if working else "")
        return Line(name="weights on their way", kind="transient", bytes=size * largest + working, formula=told)
    if setup.device == "cpu" and size == 4:  # four are read at once; embedding and head are the first
        numbers = (1 if shape.tied else 2) * shape.embedding_parameters + 2 * largest
        return Line(name="weights on their way", kind="transient", bytes=2 * numbers, formula=f"{numbers:,} × 2 B")
    return Line(name="experts on their way", kind="transient", bytes=size * max([0, *stacks]), formula="as they are read, and as one")

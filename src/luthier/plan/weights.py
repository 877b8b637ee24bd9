"""What lies in a device's memory from load to end: weights by storage format, the adapter, gradients and optimizer state."""

from dataclasses import dataclass, replace

from luthier.plan.lines import Line
from luthier.plan.setup import DTYPE_BYTES, Quantization, Setup
from luthier.plan.shape import Linear, ModelShape, adapted, adapter_parameters

BLOCK, NESTED_BLOCK = 64, 256
"""bitsandbytes 0.48: numbers that share a 4-bit constant (float32); and with double quantisation, constants of a byte that share one."""
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


def bytes_per_weight(quantization: Quantization, double_quant: bool, dtype_bytes: int) -> float:
    """Of a matrix that is quantised, its constants included, but for int8's row scales.

    nf4: 0.5 + 4/64 = 0.5625; with double quantisation 0.5 + 1/64 + 4/(64·256) = 0.5159 (QLoRA, arXiv:2305.14314: 0.127 bits a weight).
    """
    match quantization:
        case "none":
            return dtype_bytes
        case "int8":
            return 1.0
        case "nf4" | "fp4":
            return 0.5 + (1 / BLOCK + 4 / (BLOCK * NESTED_BLOCK) if double_quant else 4 / BLOCK)


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
    found = [_matrices(cut, setup, size, share, replicas * layout.tensor)]
    if whole:
        line = _matrices(whole, setup, size, share, replicas)
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


def _matrices(modules: list[Linear], setup: Setup, size: int, share: float, devices: int) -> Line:
    """Linear layers and experts below the head. `share` is this stage's, which so many devices divide."""
    number = sum(item.parameters for item in modules)
    each = bytes_per_weight(setup.quantization, setup.double_quant, size)
    total, told = number * each, f"{number:,} × {each:.6g} B"
    if setup.quantization == "int8":
        rows = sum(item.count * item.d_out for item in modules)
        total, told = total + 4 * rows, f"{told} + {rows:,} rows × 4 B"
    name = "matrices" if setup.quantization == "none" else f"matrices in {setup.quantization}"
    over = f" / {devices} devices" if devices > 1 else ""
    return Line(kind="weights", name=name, bytes=round(total * share / devices), formula=told + over)


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
    each = bytes_per_weight(setup.quantization, setup.double_quant, size)
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


def loading(shape: ModelShape, setup: Setup) -> Line:
    """What loading needs besides the weights: on a CPU the file's bfloat16 while it becomes float32, on a GPU a matrix to quantise."""
    if setup.device == "cpu" and (setup.lora == "none" or setup.dtype == "float32"):
        return Line(name="the file, mapped", kind="transient", bytes=2 * shape.parameters, formula=f"{shape.parameters:,} × 2 B")
    if setup.device == "cuda" and setup.quantization != "none":
        largest = max(item.d_in * item.d_out for item in shape.linears if item.is_quantized)
        return Line(name="a matrix to quantise", kind="transient", bytes=2 * largest, formula=f"{largest:,} × 2 B")
    return Line(name="nothing", kind="transient", bytes=0, formula="the file's pages become the weights, or are copied to the GPU")

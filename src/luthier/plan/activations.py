"""What a micro batch keeps for its backward pass and needs for moments, counted from the code that computes it, engine by engine.

T = places of the micro batch, S = those that a target is predicted from, N = targets, D = hidden, Q = all queries, K = all keys (and
values), F = gate (and up), r = rank, V = vocabulary, b = bytes of the compute type.  Under tensor parallelism Q, K and F are divided.

`tests/plan/test_activations.py` compares with what autograd saves, `bench/plan_accuracy.py` with what the process takes.
"""

from dataclasses import dataclass

from luthier.plan.adapted import adapted
from luthier.plan.setup import DTYPE_BYTES, Setup
from luthier.plan.shape import ModelShape
from luthier.plan.tensor import divides_heads
from luthier.runs.workload import Extent

CHUNK_BYTES = 64 << 20
"""Of logits at once (`luthier.model.head`)."""
OWN, ANCESTOR, ROUND = 256, 1024, 32
"""Queries of a block of scores: about so many of a node with itself, at most so many with an ancestor; and what sizes are rounded to
(`luthier.model.attention`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerToken:
    """Values that one token has, by what they are: (name, number, bytes of each)."""

    terms: tuple[tuple[str, int, int], ...]

    @property
    def bytes(self) -> int:
        """Of one token."""
        return sum(number * size for _, number, size in self.terms)

    def __add__(self, other: "PerToken") -> "PerToken":
        return PerToken(terms=self.terms + other.terms)

    def __str__(self) -> str:
        """`(1,024·2 B q + 64·4 B statistics)`, in the order of the terms."""
        return "(" + " + ".join(f"{number:,}·{size} B {name}" for name, number, size in self.terms if number) + ")"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What stands in the place of an MLP."""

    experts: int
    per_token: int
    width: int
    """Of the experts of one token side by side; the rest of `Layer.gated` is the shared one's."""
    one_by_one: bool
    """Luthier computes them (`luthier.model.experts`): they are in few bits, or have an adapter. Else transformers does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Widths of a layer as one device computes it."""

    hidden: int
    queries: int
    keys: int
    gated: int
    """Of the MLP between its products; of a mixture the experts of one token side by side."""
    heads: int
    head_width: int
    rank: int
    adapters: frozenset[str]
    """Names of the matrices that have one."""
    head_norms: bool
    gates: int
    """Width of what gates attention's output."""
    norms: int
    mixture: "Mixture | None"
    size: int
    """b."""
    stream: int
    """Bytes of a value of the hidden states between layers: trained weights keep them in float32."""

    @property
    def qkv(self) -> int:
        """Columns of q, k and v."""
        return self.queries + 2 * self.keys

    def with_adapter(self, *names: str) -> int:
        """How many of these have one."""
        return len(self.adapters.intersection(names))


def layer_of(shape: ModelShape, setup: Setup) -> Layer:
    """The widths of a layer on one of the setup's devices."""
    tensor, size = setup.layout.tensor if divides_heads(shape) else 1, DTYPE_BYTES[setup.dtype]
    adapters = frozenset[str]() if setup.lora == "none" else frozenset(linear.name for linear in adapted(shape, setup.lora))
    return Layer(
        hidden=shape.hidden,
        queries=shape.query_width // tensor,
        keys=max(shape.kv_width // tensor, shape.head_width),
        gated=shape.intermediate // tensor,
        heads=max(1, shape.heads // tensor),
        head_width=shape.head_width,
        rank=0 if setup.lora == "none" else setup.lora.r,
        adapters=adapters,
        head_norms=shape.head_norms,
        gates=shape.query_width // tensor if shape.gated_attention else 0,
        norms=shape.norms_per_layer,
        mixture=_mixture(shape, setup) if shape.mixture_layers else None,
        size=size,
        stream=4 if setup.lora == "none" else size,
    )


def _mixture(shape: ModelShape, setup: Setup) -> Mixture:
    reached = () if setup.lora == "none" else adapted(shape, setup.lora)
    return Mixture(
        experts=shape.experts,
        per_token=shape.experts_per_token,
        width=shape.experts_per_token * shape.expert_intermediate // setup.layout.tensor,
        one_by_one=setup.quantization != "none" or any(linear.fused for linear in reached),
    )


def kept_before(layer: Layer, setup: Setup, several: bool) -> PerToken:
    """What a layer keeps up to attention's output. `several` micro batches: the one before leaves its angles until the next is through."""
    if setup.engine != "fused":
        return _kept_by_attention(layer, setup)
    inner = layer.rank * layer.with_adapter("q_proj", "k_proj", "v_proj")
    return PerToken(
        terms=(
            ("input", layer.hidden, layer.size),
            ("q, k, v", layer.qkv, layer.size),
            ("attention", layer.queries, layer.size),
            ("adapters", inner, layer.size),
            ("statistics", 1 + layer.heads, 4),
            ("angles", layer.head_width * (2 if several else 1), 4),
        )
    )


def kept_after(layer: Layer, setup: Setup) -> PerToken:
    """What it keeps from there to its output."""
    if layer.mixture and setup.lora != "none":
        return _kept_by_mixture(layer, layer.mixture)
    if setup.engine != "fused":
        return _kept_by_mlp(layer, setup)
    inner = layer.rank * layer.with_adapter("o_proj", "gate_proj", "up_proj", "down_proj")
    return PerToken(
        terms=(
            ("input", layer.hidden, layer.size),
            ("gate, up", 2 * layer.gated, layer.size),
            ("adapters", inner, layer.size),
            ("statistics", 1, 4),
        )
    )


def layer_input(layer: Layer, setup: Setup, several: bool) -> PerToken:
    """All that a layer keeps if it is computed again in the backward pass."""
    angles = layer.head_width * (2 if several else 1) if setup.engine == "fused" else 0
    return PerToken(terms=(("input", layer.hidden, layer.stream), ("angles", angles, 4)))


def without_input(before: PerToken, layer: Layer, setup: Setup) -> PerToken:
    """What a layer that is computed again keeps besides `layer_input`. A float32 input is what the norm keeps, too."""
    known = {"input", "angles"} if setup.engine == "fused" else {"norm's input"} if layer.stream == 4 else set()
    return PerToken(terms=tuple(term for term in before.terms if term[0] not in known))


def _kept_by_attention(layer: Layer, setup: Setup) -> PerToken:
    """transformers' modules up to attention's output: RMSNorm in float32, products, head norms, attention.

    Trained weights want what they are multiplied with: the norms' normalised values, and under autocast a copy of each product's input.
    PEFT's own layers (plain) cast their input to float32 and back, a copy each; the fused ones keep one for those that share it.
    """
    trained, plain, autocast = setup.lora == "none", setup.engine == "plain", layer.size < 4
    names = ("q_proj", "k_proj", "v_proj")
    if trained:
        copies = 3 if autocast else 1
    else:
        copies = layer.with_adapter(*names) if plain and (autocast or _drops(setup)) else min(1, layer.with_adapter(*names))
    head_values = layer.queries + layer.keys if layer.head_norms else 0
    return PerToken(
        terms=(
            ("norm's input", layer.hidden, 4),
            ("normalised", layer.hidden if trained else 0, 4),
            ("inputs of products", copies * layer.hidden, layer.size),
            ("head norms", head_values, 4),
            ("normalised heads", head_values if trained else 0, layer.size),
            ("q, k, v", layer.qkv, layer.size),
            ("attention", layer.queries, layer.size),
            ("gate of attention", 2 * layer.gates, layer.size),
            ("o's input", layer.queries if plain and autocast and layer.with_adapter("o_proj") else 0, layer.size),
            ("adapters", layer.rank * layer.with_adapter(*names, "o_proj"), layer.size),
            ("statistics", 1 + layer.heads + (layer.heads if layer.head_norms else 0), 4),
        )
    )


def _kept_by_mlp(layer: Layer, setup: Setup) -> PerToken:
    """transformers' modules from there: RMSNorm in float32, gate, up, activation, their product as down's input."""
    trained, plain, autocast = setup.lora == "none", setup.engine == "plain", layer.size < 4
    names = ("gate_proj", "up_proj")
    if trained:
        copies = 2 if autocast else 1
    else:
        copies = layer.with_adapter(*names) if plain and (autocast or _drops(setup)) else min(1, layer.with_adapter(*names))
    down = 1 if trained or layer.with_adapter("down_proj") else 0
    return PerToken(
        terms=(
            ("norm's input", (layer.norms - 1) * layer.hidden, 4),
            ("normalised", (layer.norms - 1) * layer.hidden if trained else 0, 4),
            ("inputs of products", (copies + (1 if layer.mixture else 0)) * layer.hidden, layer.size),
            ("gate, activation, up", 3 * layer.gated, layer.size),
            ("down's input", down * layer.gated, layer.size),
            ("adapters", layer.rank * layer.with_adapter(*names, "down_proj"), layer.size),
            ("statistics", 1, 4),
        )
    )


def _kept_by_mixture(layer: Layer, mixture: Mixture) -> PerToken:
    """transformers' norm and router, in any engine, and the experts: one by one they keep their input once, and gate and up; transformers'
    keep an input for each, and what is activated, too. The shared expert is an MLP."""
    inputs, values = (1, 2) if mixture.one_by_one else (mixture.per_token, 3)
    return PerToken(
        terms=(
            ("norm's input", layer.hidden, 4),
            ("router", 3 * mixture.experts + 8 * mixture.per_token, 4),
            ("experts", inputs * layer.hidden + values * mixture.width, layer.size),
            ("shared expert", 3 * (layer.gated - mixture.width), layer.size),
        )
    )


def mlp_backward(layer: Layer, setup: Setup) -> PerToken:
    """The most that a layer's backward pass, or its recomputation, holds beyond what is kept: in the MLP."""
    if layer.mixture and layer.mixture.one_by_one:  # gradients of output and input, which is summed in float32
        return PerToken(terms=(("gradient", layer.hidden, layer.size), ("in float32", layer.hidden, 4)))
    if setup.engine == "fused":  # gradient of the output; of down's input, that again, and of gate and up (`Gate.backward`)
        return PerToken(terms=(("gradient", layer.hidden, layer.size), ("gradients of the MLP", 4 * layer.gated, layer.size)))
    if setup.engine == "plain" and setup.lora != "none" and layer.size < 4:  # down's input, and PEFT's copy of it in float32
        return PerToken(
            terms=(
                ("hidden states", 3 * layer.hidden, layer.size),
                ("down's input", layer.gated, layer.size),
                ("in float32", layer.gated, 4),
            )
        )
    # gradients of activation and up beside that of down's input, which is no longer kept
    return PerToken(terms=(("gradient", layer.hidden, layer.stream), ("gradients of the MLP", 2 * layer.gated, layer.size)))


def attention_backward(layer: Layer) -> PerToken:
    """The same in the attention of packs on a CPU: rotated heads and their gradients by node (`attend_backward`)."""
    return PerToken(
        terms=(
            ("gradients", layer.hidden + 2 * layer.queries, layer.size),
            ("heads", layer.qkv, layer.size),
            ("their gradients", layer.qkv, layer.size),
        )
    )


def score_blocks(layer: Layer, extent: Extent, packing: str) -> int:
    """Bytes of one block of attention in the backward pass: scores and their gradient, queries, output's gradient, queries' gradient."""
    parts = max(1, round(extent.longest / OWN))
    queries, keys = _rounded(-(-extent.longest // parts)), _rounded(extent.longest)
    if packing == "tree" and extent.places < extent.tokens:  # all descendants with one node
        queries, keys = max(queries, min(_rounded(extent.places), ANCESTOR)), _rounded(extent.longest)
    return layer.heads * queries * layer.size * (2 * keys + 3 * layer.head_width)


def chunk_rows(vocabulary: int, size: int, targets: int) -> int:
    """Rows of the head's product that are there at once: a chunk, 1,048 rows of 32,000 in bfloat16, and the next while it is made."""
    return min(targets, 2 * max(16, CHUNK_BYTES // (size * vocabulary)))


def _drops(setup: Setup) -> bool:
    """Each adapted layer then has an input of its own."""
    return setup.lora != "none" and setup.lora.dropout > 0


def _rounded(size: int) -> int:
    return -(-size // ROUND) * ROUND

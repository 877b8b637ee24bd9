"""A model's shape from its config.json, without torch: which matrices it has, how often, and what else takes memory and time.

It is what transformers 5.23 loads as a causal language model: of Qwen3.5 the text model alone, of Gemma 3 the vision tower, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from luthier.core.errors import ModelError
from luthier.plan.families import (
    BY_ROWS,
    FAMILIES,
    Family,
    Keys,
    Kind,
    configs,
    family_of,
    mixture_layers,
    text_keys,
    tower_keys,
)

Role = Literal["attention", "mlp", "expert", "router", "linear_attention", "head", "vision", "embedding"]

FUSED_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma"})
"""Model types whose layers Luthier computes itself (FAMILIES of `luthier.model.layer`)."""
FUSED_ACTIVATIONS = frozenset({"silu", "swish", "gelu_pytorch_tanh"})
"""Of a dense MLP that it computes (ACTIVATIONS there)."""
WHOLE = frozenset({"router", "head", "vision", "embedding"})
"""Roles of what every rank of tensor parallelism has whole."""
PLAIN_HEADS = frozenset({"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma"})
"""Model types whose logits are the head's product as it is (PLAIN of `luthier.model.head`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Like matrices [d_out, d_in] of the whole model."""

    name: str
    """Last part of the module's name: `q_proj`; of fused experts the names that PEFT takes for their halves: `gate_proj`."""
    role: Role
    d_in: int
    d_out: int
    count: int
    """In the model; of experts, each expert's counts."""
    active: int
    """That one token is multiplied with: as many as `count`, or experts_per_token a layer; of a vision tower none."""
    bias: bool = False
    fused: bool = False
    """A slice of a three-dimensional parameter: an expert's."""
    divided: Literal["", "columns", "rows"] = ""
    """How tensor parallelism divides it: by outputs, by inputs, or not."""

    @property
    def parameters(self) -> int:
        """Without biases."""
        return self.count * self.d_in * self.d_out

    def part(self, tensor: int) -> "Linear":
        """What one of so many ranks has of it."""
        across, down = (tensor if self.divided == way else 1 for way in ("rows", "columns"))
        return replace(self, d_in=self.d_in // across, d_out=self.d_out // down)

    @property
    def is_module(self) -> bool:
        """An nn.Linear. Experts and routers are parameters, which PEFT adapts without dropout and DoRA only."""
        return not self.fused and self.role not in ("router", "embedding")

    @property
    def is_quantized(self) -> bool:
        """That `model.quantization` reaches: linear layers below the head, and fused experts, which Luthier quantises expert by expert;
        bitsandbytes would leave these as they are (trap 20)."""
        return self.role not in ("router", "embedding", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """A layer with a state instead of a cache: the gated delta rule (arXiv:2412.06464)."""

    key_heads: int
    value_heads: int
    key_width: int
    """Of a head."""
    value_width: int
    """Of a head."""
    kernel: int
    """Tokens of the convolution before it."""

    @property
    def channels(self) -> int:
        """Of q, k and v, all of which the convolution runs over."""
        return 2 * self.key_heads * self.key_width + self.value_heads * self.value_width

    @property
    def state_numbers(self) -> int:
        """That one sequence keeps in one layer, however long it is: Qwen3.5-35B-A3B 524,288 + 32,768."""
        return self.value_heads * self.key_width * self.value_width + self.channels * self.kernel

    @property
    def vectors(self) -> int:
        """Parameters of a layer that are no matrices: convolution, decay and its bias, the output's norm."""
        return self.channels * self.kernel + 2 * self.value_heads + self.value_width


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the plan knows of a decoder."""

    model_type: str
    """As config.json says it: `gemma3`, not `gemma3_text`."""
    hidden: int
    num_layers: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_width: int
    intermediate: int
    """Of a dense MLP; of a mixture, the experts of one token side by side, with the shared one."""
    window: int | None
    """Of sliding layers."""
    full_attention_layers: int
    sliding_layers: int
    linear_attention_layers: int
    """With a state instead of a cache: Qwen3.5's."""
    tied: bool
    """Head and embedding are one matrix."""
    experts: int
    """Of a layer's mixture; 0 without."""
    experts_per_token: int
    max_positions: int
    linears: tuple[Linear, ...]
    """All but the embedding; the head is the last, also where it is tied."""
    other_parameters: int
    """Norms, biases, convolutions: all that neither `linears` nor the embedding holds."""
    mixture_layers: int = 0
    """With a router and experts; the others have a dense MLP."""
    expert_intermediate: int = 0
    """Of one expert."""
    linear_attention: LinearAttention | None = None
    """Of each of the linear_attention_layers."""
    norms_per_layer: int = 2
    """Over the hidden width; Gemma 2 and 3 have four."""
    head_norms: bool = False
    """q and k are normalised per head."""
    gated_attention: bool = False
    """q_proj is twice as wide: half of it gates attention's output."""
    activation: str = "silu"
    known: bool = True
    """One of the families that this table was compared with transformers for; else taken to have Llama's form."""

    @property
    def embedding_parameters(self) -> int:
        """Of the input's table."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Of the whole model, a tied head counted once: Qwen3-4B 4.02 G."""
        tied_head = self.embedding_parameters if self.tied else 0
        return self.embedding_parameters + sum(linear.parameters for linear in self.linears) + self.other_parameters - tied_head

    @property
    def active_parameters(self) -> int:
        """Without the experts that a token is not sent to, and without a vision tower's matrices: Qwen3-30B-A3B 3.35 G."""
        return self.parameters - sum((linear.count - linear.active) * linear.d_in * linear.d_out for linear in self.linears)

    @property
    def multiplied_parameters(self) -> int:
        """Matrices that one token is multiplied with below the head, the N of 2N, 4N and 6N: Qwen2.5-7B 6.53 G."""
        return sum(linear.active * linear.d_in * linear.d_out for linear in self.linears if linear.role != "head")

    @property
    def query_width(self) -> int:
        """Of all heads' queries, and of what attention gives."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Of all heads' keys; of their values the same."""
        return self.kv_heads * self.head_width

    @property
    def layers_like_llama(self) -> bool:
        """Luthier's own layers know its type and activation; what else they need, `luthier.model.fuse` finds out by trial."""
        return self.model_type in FUSED_FAMILIES and (self.mixture_layers > 0 or self.activation in FUSED_ACTIVATIONS)

    @property
    def plain_head(self) -> bool:
        """Its logits can be made in chunks."""
        return self.model_type in PLAIN_HEADS

    def cache_numbers(self, tokens: int) -> int:
        """Numbers that serving keeps of one sequence: keys and values, of sliding layers the window's only, and linear attention's state.

        Llama-3.1-8B: 2 · 1,024 · 32 layers = 65,536 a token, 131 kB in bf16.
        """
        seen = tokens if self.window is None else min(tokens, self.window)
        state = self.linear_attention.state_numbers if self.linear_attention else 0
        places = tokens * self.full_attention_layers + seen * self.sliding_layers
        return 2 * self.kv_width * places + state * self.linear_attention_layers


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes; raises ModelError for a decoder that is neither known nor of Llama's form."""
    try:
        return _shape(config)
    except (TypeError, AttributeError, ValueError, KeyError, ZeroDivisionError) as error:  # a list for a section, 0 heads
        change = "fetch the file anew, or take another base"
        raise ModelError(f"its values are those of no model: {error}", where="config.json", change=change) from error


def _shape(config: Mapping[str, Any]) -> ModelShape:
    model_type = str(config.get("model_type", ""))
    family = family_of(config)
    keys = text_keys(config)
    kinds = family.kinds(keys)
    mixed = mixture_layers(keys, family)
    linears = (*_attention(keys, family, kinds), *_mlps(keys, family, mixed), *_vision(config, family))
    expert_intermediate = keys.number(family.mixture.width) if family.mixture else 0
    per_token = keys.number("num_experts_per_tok") if family.mixture else 0
    shared = keys.number("shared_expert_intermediate_size") if family.mixture and family.mixture.shared else 0
    delta = _linear_attention(keys) if family.linear_attention else None
    return ModelShape(
        model_type=model_type,
        hidden=keys.number("hidden_size"),
        num_layers=len(kinds),
        vocabulary=keys.number("vocab_size"),
        heads=keys.number("num_attention_heads"),
        kv_heads=keys.kv_heads,
        head_width=keys.head_width,
        intermediate=per_token * expert_intermediate + shared if mixed else keys.number("intermediate_size"),
        window=keys.number("sliding_window") if "sliding_attention" in kinds else None,
        full_attention_layers=kinds.count("full_attention"),
        sliding_layers=kinds.count("sliding_attention"),
        linear_attention_layers=kinds.count("linear_attention"),
        tied=bool((config if family.vision else keys.values).get("tie_word_embeddings", keys.defaults["tie_word_embeddings"])),
        experts=keys.number("num_experts") if mixed else 0,
        experts_per_token=per_token if mixed else 0,
        max_positions=keys.number("max_position_embeddings"),
        linears=(*linears, _linear("lm_head", "head", keys.number("hidden_size"), keys.number("vocab_size"), 1)),
        other_parameters=_other_parameters(keys, family, linears, delta) + _vision_vectors(config, family),
        mixture_layers=mixed,
        expert_intermediate=expert_intermediate if mixed else 0,
        linear_attention=delta,
        norms_per_layer=family.norms,
        head_norms=family.head_norms,
        gated_attention=family.gated,
        activation=str(keys.get("hidden_act") or keys.get("hidden_activation")),
        known=model_type in FAMILIES,
    )


def bundled() -> Mapping[str, Mapping[str, Any]]:
    """Hub id → the keys of its config.json that its shape depends on."""
    return configs()


def known_config(hub_id: str) -> Mapping[str, Any] | None:
    """The keys of this hub id's config.json that its shape depends on; None where it is not bundled."""
    return configs().get(hub_id)


def _linear_attention(keys: Keys) -> LinearAttention:
    return LinearAttention(
        key_heads=keys.number("linear_num_key_heads"),
        value_heads=keys.number("linear_num_value_heads"),
        key_width=keys.number("linear_key_head_dim"),
        value_width=keys.number("linear_value_head_dim"),
        kernel=keys.number("linear_conv_kernel_dim"),
    )


def _linear(name: str, role: Role, d_in: int, d_out: int, count: int) -> Linear:
    divided: Literal["", "columns", "rows"] = "" if role in WHOLE or d_out == 1 else "rows" if name in BY_ROWS else "columns"
    return Linear(name=name, role=role, d_in=d_in, d_out=d_out, count=count, active=count, divided=divided)


def _attention(keys: Keys, family: Family, kinds: list[Kind]) -> list[Linear]:
    """Matrices of all attention layers, then of all linear attention layers."""
    hidden, count = keys.number("hidden_size"), len(kinds) - kinds.count("linear_attention")
    width = keys.head_width
    q = keys.number("num_attention_heads") * width
    kv = keys.kv_heads * width
    d_out = {"qkv_proj": q + 2 * kv} if family.joined else {"q_proj": q * (2 if family.gated else 1), "k_proj": kv, "v_proj": kv}
    softmax = [_linear(name, "attention", hidden, wide, count) for name, wide in d_out.items()]
    softmax.append(_linear("o_proj", "attention", q, hidden, count))
    if not family.linear_attention:
        return _with_biases(softmax, keys, family)
    delta, deltas = _linear_attention(keys), kinds.count("linear_attention")
    values, heads = delta.value_heads * delta.value_width, delta.value_heads
    joined = {"in_proj_qkvz": delta.channels + values, "in_proj_ba": 2 * heads}
    split = {"in_proj_qkv": delta.channels, "in_proj_z": values, "in_proj_b": heads, "in_proj_a": heads}
    d_out = joined if family.linear_attention == "joined" else split
    linear = [_linear(name, "linear_attention", hidden, wide, deltas) for name, wide in d_out.items()]
    return [*_with_biases(softmax, keys, family), *linear, _linear("out_proj", "linear_attention", values, hidden, deltas)]


def _mlps(keys: Keys, family: Family, mixed: int) -> list[Linear]:
    """Matrices of dense layers, then of mixtures: router, experts, shared expert."""
    hidden, dense = keys.number("hidden_size"), keys.number("num_hidden_layers") - mixed
    linears = _mlp(hidden, keys.number("intermediate_size"), dense, family.joined) if dense else []
    if family.mixture is not None and mixed:
        experts, per_token = keys.number("num_experts"), keys.number("num_experts_per_tok")
        linears.append(_linear(family.mixture.router, "router", hidden, experts, mixed))
        names = family.mixture.experts
        for name, linear in zip(names, _mlp(hidden, keys.number(family.mixture.width), mixed * experts), strict=True):
            linears.append(replace(linear, name=name, role="expert", active=mixed * per_token, fused=True))
        if family.mixture.shared:
            shared = _mlp(hidden, keys.number("shared_expert_intermediate_size"), mixed)
            linears += shared if family.mixture.shared_divided else [replace(linear, divided="") for linear in shared]
            linears.append(_linear("shared_expert_gate", "mlp", hidden, 1, mixed))
    return _with_biases(linears, keys, family)


def _mlp(hidden: int, width: int, count: int, joined: bool = False) -> list[Linear]:
    ups = {"gate_up_proj": 2 * width} if joined else {"gate_proj": width, "up_proj": width}
    linears = [_linear(name, "mlp", hidden, wide, count) for name, wide in ups.items()]
    return [*linears, _linear("down_proj", "mlp", width, hidden, count)]


def _with_biases(linears: list[Linear], keys: Keys, family: Family) -> list[Linear]:
    biased = {name for key, names in family.biases.items() if key == "" or keys.get(key) for name in names}
    return [replace(linear, bias=linear.name in biased) for linear in linears]


def _other_parameters(keys: Keys, family: Family, linears: tuple[Linear, ...], delta: LinearAttention | None) -> int:
    """Norms, biases, sinks, and linear attention's vectors."""
    kinds = family.kinds(keys)
    deltas = kinds.count("linear_attention")
    softmax = len(kinds) - deltas
    norms = keys.number("hidden_size") * (family.norms * len(kinds) + 1) + (2 * keys.head_width * softmax if family.head_norms else 0)
    biases = sum(linear.count * linear.d_out for linear in linears if linear.bias)
    sinks = keys.number("num_attention_heads") * softmax if family.sinks else 0
    return norms + biases + sinks + (delta.vectors * deltas if delta else 0)


def _vision(config: Mapping[str, Any], family: Family) -> list[Linear]:
    """Matrices of Gemma 3's SigLIP tower; they have biases, and no text runs through them."""
    if not family.vision:
        return []
    keys = tower_keys(config)
    hidden, wide, layers = keys.number("hidden_size"), keys.number("intermediate_size"), keys.number("num_hidden_layers")
    head = int(bool(keys.get("vision_use_head")))
    square = [_linear(name, "vision", hidden, hidden, layers) for name in ("q_proj", "k_proj", "v_proj")]
    square.append(_linear("out_proj", "vision", hidden, hidden, layers + head))
    mlp = [_linear("fc1", "vision", hidden, wide, layers + head), _linear("fc2", "vision", wide, hidden, layers + head)]
    return [replace(linear, bias=True, active=0) for linear in square + mlp]


def _vision_vectors(config: Mapping[str, Any], family: Family) -> int:
    """What else the tower has: patches and their places, norms, the projection to the text's width, and a head that pools."""
    if not family.vision:
        return 0
    keys = tower_keys(config)
    hidden, patch = keys.number("hidden_size"), keys.number("patch_size")
    places = (keys.number("image_size") // patch) ** 2
    patches = keys.number("num_channels") * patch**2 * hidden + hidden + places * hidden
    norms = 2 * hidden * (2 * keys.number("num_hidden_layers") + 1)
    projection = hidden * text_keys(config).number("hidden_size") + hidden
    head = hidden + 3 * hidden * (hidden + 1) + 2 * hidden if keys.get("vision_use_head") else 0
    return patches + norms + projection + head

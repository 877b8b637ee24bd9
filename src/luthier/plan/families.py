"""In what the decoders of transformers 5.23 differ: kinds of layers, biases, norms, experts; `shape.py` builds from it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from luthier.core.errors import ModelError

Kind = Literal["full_attention", "sliding_attention", "linear_attention"]

QKV = ("q_proj", "k_proj", "v_proj")
ATTENTION = (*QKV, "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
BY_ROWS = frozenset({"o_proj", "down_proj", "w2"})
"""What tensor parallelism divides by its inputs; other matrices by their outputs."""
HALVES = frozenset({"gate_proj", "up_proj", "w1", "w3"})
"""Names of experts that transformers fuses two by two."""
SECOND_HALVES = frozenset({"up_proj", "w3"})
"""Those of them that stand behind the other."""
LARGEST = 2**24
"""Of any size in a config.json: contexts end at 10 M tokens. A stranger's 10⁹ layers would be counted one by one."""
LLAMA_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
UNLIKE_LLAMA = ("text_config", "num_experts", "num_local_experts", "n_routed_experts", "kv_lora_rank", "linear_num_value_heads")
"""Keys of a config.json that speak against Llama's form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """A config.json's values, where it has none the defaults of its model type; a value that is null is none, not the default."""

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """The value as it stands there; None where there is none."""
        return self.values[name] if name in self.values else self.defaults.get(name)

    def number(self, name: str) -> int:
        """A size; raises ModelError where there is none."""
        value = self.get(name)
        if not isinstance(value, int) or not 0 <= value <= LARGEST:
            what = f"its {name} is {value!r:.80}, which must be a whole number, at most {LARGEST:,}"
            raise ModelError(what, where="config.json", change=f"set {name} there as the model's weights have it")
        return value

    def number_or(self, name: str, otherwise: int) -> int:
        """A size, or what it is where config.json does not say."""
        return otherwise if self.get(name) is None else self.number(name)

    @property
    def head_width(self) -> int:
        """Of one attention head."""
        return self.number_or("head_dim", self.number("hidden_size") // self.number("num_attention_heads"))

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.number_or("num_key_value_heads", self.number("num_attention_heads"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A layer's router and experts, which transformers holds as parameters of their own modules, not as nn.Linear."""

    router: str = "gate"
    experts: tuple[str, str, str] = MLP
    """Gate, up and down, by the names that PEFT takes, where it reaches them."""
    width: str = "moe_intermediate_size"
    """The key of config.json that says how wide an expert is."""
    shared: bool = False
    """One more expert, of nn.Linear, for every token."""
    shared_divided: bool = True
    """Tensor parallelism divides that one, too."""
    turned: bool = False
    """PEFT 0.21.2 takes the names of router and experts for their parameters and for nothing else: a shared expert's nn.Linear of that name
    then has no adapter. Where it does not (qwen2_moe, qwen3_5_moe, gpt_oss), no name and no all-linear reaches the experts."""

    @property
    def turned_names(self) -> frozenset[str]:
        """What PEFT takes for parameters."""
        return frozenset({self.router, *self.experts}) if self.turned else frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Decoders of one model type."""

    kinds: Callable[[Keys], list[Kind]]
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Key of config.json → the matrices that have a bias where it is true; under the empty key those that always have one."""
    norms: int = 2
    """Of a layer."""
    head_norms: bool = False
    gated: bool = False
    """q_proj gives the output's gate, too."""
    joined: bool = False
    """q, k and v are one matrix, and gate and up."""
    sinks: bool = False
    """A number per head takes part in the softmax."""
    linear_attention: Literal["", "joined", "split"] = ""
    mixture: Mixture | None = None
    tensor: Literal["", "heads", "matrices"] = "heads"
    """What transformers' plan for tensor parallelism divides: heads and all that is between their matrices; matrices only, of which each
    gives all ranks its whole output; nothing, where there is none."""
    vision: bool = False
    """transformers loads the vision tower, too, where it is asked for a causal language model."""


def _full(keys: Keys) -> list[Kind]:
    return ["full_attention"] * keys.number("num_hidden_layers")


def _windowed(keys: Keys) -> list[Kind]:
    """All layers, where there is a window."""
    window = None if keys.get("use_sliding_window") is False else keys.get("sliding_window")
    return _full(keys) if window is None else ["sliding_attention"] * keys.number("num_hidden_layers")


def _listed(kind_at: Callable[[Keys, int], Kind]) -> Callable[[Keys], list[Kind]]:
    """The layer_types of config.json, or what they are where it has none."""

    def kinds(keys: Keys) -> list[Kind]:
        listed: list[Kind] | None = keys.get("layer_types")
        return listed or [kind_at(keys, layer) for layer in range(keys.number("num_hidden_layers"))]

    return kinds


def _late(keys: Keys, layer: int) -> Kind:
    sliding = keys.get("use_sliding_window") and keys.get("sliding_window") is not None and layer >= keys.number("max_window_layers")
    return "sliding_attention" if sliding else "full_attention"


def _early_even(keys: Keys, layer: int) -> Kind:
    sliding = keys.get("use_sliding_window") and layer % 2 == 0 and layer < keys.number("max_window_layers")
    return "sliding_attention" if sliding else "full_attention"


def _even(keys: Keys, layer: int) -> Kind:
    return "full_attention" if layer % 2 else "sliding_attention"


def _five_of_six(keys: Keys, layer: int) -> Kind:
    return "sliding_attention" if (layer + 1) % keys.number("sliding_window_pattern") else "full_attention"


def _three_of_four(keys: Keys, layer: int) -> Kind:
    return "linear_attention" if (layer + 1) % keys.number("full_attention_interval") else "full_attention"


_BIAS = {"attention_bias": ATTENTION}
_QWEN3_5 = Family(kinds=_listed(_three_of_four), biases=_BIAS, head_norms=True, gated=True, linear_attention="split")
_GEMMA2 = Family(kinds=_listed(_even), biases=_BIAS, norms=4)
_GEMMA3 = replace(_GEMMA2, kinds=_listed(_five_of_six), head_norms=True)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(kinds=_full, biases={**_BIAS, "mlp_bias": MLP}),
    "mistral": Family(kinds=_windowed),
    "mixtral": Family(kinds=_windowed, mixture=Mixture(experts=("w1", "w3", "w2"), width="intermediate_size", turned=True)),
    "qwen2": Family(kinds=_listed(_late), biases={"": QKV}),
    "qwen2_moe": Family(kinds=_listed(_early_even), biases={"qkv_bias": QKV}, mixture=Mixture(shared=True, shared_divided=False)),
    "qwen3": Family(kinds=_listed(_late), biases=_BIAS, head_norms=True),
    "qwen3_moe": Family(kinds=_windowed, biases=_BIAS, head_norms=True, mixture=Mixture(turned=True)),
    "qwen3_next": replace(_QWEN3_5, linear_attention="joined", mixture=Mixture(shared=True, turned=True)),
    "qwen3_5": _QWEN3_5,
    "qwen3_5_text": _QWEN3_5,
    "qwen3_5_moe": replace(_QWEN3_5, mixture=Mixture(shared=True)),
    "qwen3_5_moe_text": replace(_QWEN3_5, mixture=Mixture(shared=True)),
    "gemma": Family(kinds=_full, biases=_BIAS),
    "gemma2": _GEMMA2,
    "gemma3": replace(_GEMMA3, vision=True),
    "gemma3_text": _GEMMA3,
    "phi3": Family(kinds=_windowed, joined=True, tensor="matrices"),
    "gpt_oss": Family(
        kinds=_listed(_even),
        biases={**_BIAS, "": ("router", *MLP)},
        sinks=True,
        tensor="",
        mixture=Mixture(router="router", width="intermediate_size"),
    ),
}
"""Model type → its family."""


@cache
def bundle() -> Mapping[str, Any]:
    """models.json: the defaults of the model types' configs, and configs of models by hub id."""
    bundle: Mapping[str, Any] = json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))
    return bundle


@cache
def configs() -> Mapping[str, Mapping[str, Any]]:
    """Hub id → the keys of its config.json, of the models there."""
    return {hub_id: entry["config"] | changes for entry in bundle()["models"] for hub_id, changes in entry["ids"].items()}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json; Llama's for an unknown model type that has Llama's keys, ModelError for another."""
    model_type = str(config.get("model_type", ""))
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    missing = [key for key in LLAMA_KEYS if key not in config]
    foreign = [key for key in UNLIKE_LLAMA if config.get(key)]
    if missing or foreign:
        reason = f"its config.json has no {missing[0]}" if missing else f"{foreign[0]} in its config.json is not of Llama's form"
        change = f"take a base of one of the model types {', '.join(sorted(FAMILIES))}, or of Llama's form"
        raise ModelError(f"the shape of model type {model_type!r} is not known: {reason}", where="config.json", change=change)
    return FAMILIES["llama"]


def text_keys(config: Mapping[str, Any]) -> Keys:
    """Values and defaults of the text model, as transformers reads them: experts are counted under two names, Gemma's gelu is tanh's."""
    defaults, model_type = bundle()["defaults"], config.get("model_type")
    text = dict(config.get("text_config") or config)
    if "num_local_experts" in text:
        text["num_experts"] = text["num_local_experts"]
    if model_type == "gemma" and text.get("hidden_act") == "gelu":
        text["hidden_act"] = "gelu_pytorch_tanh"
    return Keys(values=text, defaults=defaults.get(model_type) or defaults.get(f"{model_type}_text") or defaults["llama"])


def tower_keys(config: Mapping[str, Any]) -> Keys:
    """Values and defaults of Gemma 3's vision tower."""
    return Keys(values=config.get("vision_config") or {}, defaults=bundle()["defaults"]["siglip_vision_model"])


def mixture_layers(keys: Keys, family: Family) -> int:
    """How many layers have experts: all, or those that decoder_sparse_step and mlp_only_layers leave."""
    if family.mixture is None or not keys.get("num_experts"):
        return 0
    step, dense = keys.number_or("decoder_sparse_step", 1), keys.get("mlp_only_layers") or ()
    return sum((layer + 1) % step == 0 and layer not in dense for layer in range(keys.number("num_hidden_layers")))

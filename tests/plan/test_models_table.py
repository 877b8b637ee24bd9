"""The shapes of bundled models and of every family, against the models that transformers builds and the adapters that PEFT makes."""

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.core.errors import RecipeError
from luthier.model.head import PLAIN
from luthier.model.layer import ACTIVATIONS
from luthier.model.layer import FAMILIES as FUSED
from luthier.plan.adapted import adapted, adapter_parameters
from luthier.plan.families import FAMILIES, text_keys
from luthier.plan.shape import FUSED_ACTIVATIONS, FUSED_FAMILIES, PLAIN_HEADS, ModelShape, bundled, shape_of
from luthier.recipe.schema import Lora

NESTED = ("gemma3", "qwen3_5", "qwen3_5_moe")
TINY = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 128},
    **{"pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
}
TINY_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 56}
TINY_DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12}
TINY_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_key_value_heads": None, "head_dim": None}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 3, "num_key_value_heads": None}),
    ("qwen2_moe", {"qkv_bias": False, "mlp_only_layers": [1], "use_sliding_window": True, "max_window_layers": 3}),
    ("qwen3", {"attention_bias": True, "use_sliding_window": True, "max_window_layers": 1}),
    ("qwen3", {"layer_types": ["sliding_attention"] * 3 + ["full_attention"] * 2, "use_sliding_window": True}),
    ("qwen3_moe", {"use_sliding_window": True, "decoder_sparse_step": 2, "attention_bias": True}),
    ("qwen3_next", {"full_attention_interval": 2, "mlp_only_layers": [0, 3], "attention_bias": True}),
    ("qwen3_5", {"full_attention_interval": 3, "tie_word_embeddings": True}),
    ("gemma3", {"sliding_window_pattern": 2, "attention_bias": True}),
    ("mixtral", {"sliding_window": 16}),
    ("gpt_oss", {"attention_bias": False}),
]


def with_text(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The config with these values of its text model."""
    if "text_config" not in config:
        return {**config, **changes}
    return {**config, "text_config": {**config["text_config"], **changes}}


def tiny(model_type: str, **changes: Any) -> dict[str, Any]:
    """A config.json of five small layers."""
    text = {**TINY, **TINY_EXPERTS, **TINY_DELTA, "num_hidden_layers": 5, **changes}
    if model_type not in NESTED:
        return {"model_type": model_type, **text}
    return {"model_type": model_type, "text_config": text, "vision_config": TINY_TOWER if model_type == "gemma3" else {}}


def built(config: Mapping[str, Any]) -> PreTrainedModel:
    """transformers' model, without numbers."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return model


def matrices(model: PreTrainedModel) -> Counter[tuple[str, int, int, bool]]:
    """Name, d_in, d_out and bias of nn.Linear and of routers; how often each is there."""
    found: Counter[tuple[str, int, int, bool]] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__.endswith("Router"):
            d_out, d_in = module.weight.shape
            found[name.rpartition(".")[2], d_in, d_out, getattr(module, "bias", None) is not None] += 1
    return found


def expert_parameters(model: PreTrainedModel) -> Counter[str]:
    """Numbers in the three-dimensional parameters of experts, by name."""
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and ".experts." in name:
            found[name.rpartition(".")[2]] += parameter.numel()
    return found


def expected_expert_parameters(shape: ModelShape) -> Counter[str]:
    """The same of the shape, its halves together."""
    found: Counter[str] = Counter()
    for linear in shape.linears:
        if linear.fused:
            found["down_proj" if linear.name in ("down_proj", "w2") else "gate_up_proj"] += linear.parameters
    return found


def attention_layers(model: PreTrainedModel) -> Counter[str]:
    """Kinds of layers, from the modules themselves."""
    kinds: Counter[str] = Counter()
    for name, module in model.named_modules():
        if name.endswith("self_attn") and "vision" not in name:
            of_layer = getattr(module, "sliding_window", None)
            window = of_layer if getattr(module.config, "layer_types", None) else getattr(module.config, "sliding_window", None)
            kinds["sliding" if window else "full"] += 1
        elif name.endswith("linear_attn"):
            kinds["linear"] += 1
    return kinds


def assert_same(shape: ModelShape, model: PreTrainedModel) -> None:
    """Every matrix, every kind of layer, and the sum of all parameters."""
    of_modules = Counter({(one.name, one.d_in, one.d_out, one.bias): 0 for one in shape.linears if not one.fused})
    for linear in shape.linears:
        if not linear.fused:
            of_modules[linear.name, linear.d_in, linear.d_out, linear.bias] += linear.count
    assert of_modules == matrices(model)
    assert expected_expert_parameters(shape) == expert_parameters(model)
    kinds = {"full": shape.full_attention_layers, "sliding": shape.sliding_layers, "linear": shape.linear_attention_layers}
    assert Counter(kinds) == attention_layers(model)
    assert shape.window == (model.config.get_text_config().sliding_window if shape.sliding_layers else None)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


@pytest.mark.parametrize("hub_id", bundled())
def test_a_bundled_model_has_the_matrices_that_transformers_builds(hub_id: str) -> None:
    config = with_text(bundled()[hub_id], num_hidden_layers=4)
    assert_same(shape_of(config), built(config))


@pytest.mark.parametrize("hub_id", ["Qwen/Qwen3-0.6B", "google/gemma-3-1b-it"])
def test_a_bundled_model_as_it_is_has_as_many_parameters(hub_id: str) -> None:
    assert_same(shape_of(bundled()[hub_id]), built(bundled()[hub_id]))


@pytest.mark.parametrize(("model_type", "changes"), [*((name, {}) for name in FAMILIES), *VARIANTS], ids=str)
def test_a_family_has_the_matrices_that_transformers_builds(model_type: str, changes: dict[str, Any]) -> None:
    config = tiny(model_type, **changes)
    assert_same(shape_of(config), built(config))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_keys_that_are_missing_are_transformers_defaults(model_type: str) -> None:
    text = AutoConfig.for_model(model_type).get_text_config()
    for key, value in text_keys({"model_type": model_type}).defaults.items():
        if key not in (
            "full_attention_interval",
            "sliding_window_pattern",
            "sliding_window",
        ):  # of which transformers keeps the layer types
            assert getattr(text, key) == value, key


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_config_that_transformers_writes_gives_the_same_shape(model_type: str) -> None:
    config = tiny(model_type)
    assert shape_of(AutoConfig.for_model(**config).to_dict()) == shape_of(config)


TARGETS: tuple[tuple[str, ...] | str, ...] = ("all-linear", ("q_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj"))
BY_NAME = {"phi3": (("qkv_proj",), ("gate_up_proj", "down_proj")), "mixtral": (TARGETS[1], ("w1", "w2", "w3"))}
NOT_REACHED = {"gpt_oss"}
"""PEFT finds no expert there, by any name."""


def peft_parameters(config: Mapping[str, Any], lora: Lora) -> int:
    """Trainable parameters of the adapter that PEFT makes."""
    targets = lora.target_modules if lora.target_modules == "all-linear" else list(lora.target_modules)
    parameters = ["experts.gate_up_proj", "experts.down_proj"] if lora.target_parameters == "experts" else list(lora.target_parameters)
    wanted = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_dropout=lora.dropout,
        target_modules=targets,
        target_parameters=parameters or None,
        use_dora=lora.use_dora,
    )
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = get_peft_model(built(config), wanted)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if not name.endswith("_text")])
def test_an_adapter_has_the_parameters_that_peft_gives_it(model_type: str) -> None:
    config = tiny(model_type)
    for targets in ("all-linear", *BY_NAME.get(model_type, TARGETS[1 : 2 if model_type in NOT_REACHED else 3])):
        lora = Lora(r=4, target_modules=targets)
        assert adapter_parameters(shape_of(config), lora) == peft_parameters(config, lora), targets


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe", "gpt_oss"])
def test_experts_are_adapted_as_parameters_where_no_name_of_a_module_reaches_them(model_type: str) -> None:
    config = tiny(model_type)
    for targets in ("all-linear", ("q_proj",)):
        for parameters in (
            "experts",
            ("experts.down_proj",),
            ("gate_up_proj", "router.weight" if model_type == "gpt_oss" else "gate.weight"),
        ):
            lora = Lora(r=4, target_modules=targets, target_parameters=parameters)
            assert adapter_parameters(shape_of(config), lora) == peft_parameters(config, lora), (targets, parameters)


@pytest.mark.parametrize(
    ("model_type", "parameters"), [("llama", "experts"), ("qwen3_moe", ("experts.w1",)), ("qwen3_moe", ("erts.down_proj",))]
)
def test_a_parameter_that_is_not_there_is_named(model_type: str, parameters: Any) -> None:
    with pytest.raises(RecipeError, match="matches no fused weight"):
        adapted(shape_of(tiny(model_type)), Lora(target_parameters=parameters))


@pytest.mark.parametrize("model_type", ["llama", "qwen3_5", "gemma3"])
def test_dora_adds_a_magnitude_per_row(model_type: str) -> None:
    config = tiny(model_type)
    lora = Lora(r=4, target_modules="all-linear", use_dora=True)
    assert adapter_parameters(shape_of(config), lora) == peft_parameters(config, lora)


def test_an_untied_head_and_the_embedding_can_be_named() -> None:
    config = tiny("llama")
    for use_dora in (False, True):
        lora = Lora(r=4, target_modules=("q_proj", "lm_head", "embed_tokens"), use_dora=use_dora)
        assert adapter_parameters(shape_of(config), lora) == peft_parameters(config, lora)


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [("qwen3_moe", ("q_proj", "gate_proj")), ("mixtral", ("up_proj",)), ("gpt_oss", ("down_proj",)), ("llama", ("query",))],
)
def test_what_peft_refuses_is_refused(model_type: str, targets: tuple[str, ...]) -> None:
    config, lora = tiny(model_type), Lora(target_modules=targets)
    with pytest.raises(RecipeError):
        adapted(shape_of(config), lora)
    with pytest.raises(ValueError):
        peft_parameters(config, lora)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "qwen3_next"])
def test_dora_and_dropout_on_what_is_no_module_are_refused_by_peft(model_type: str) -> None:
    reached = adapted(shape_of(tiny(model_type)), Lora())
    assert {linear.role for linear in reached if not linear.is_module} == {"router", "expert"}
    for lora in (Lora(use_dora=True), Lora(dropout=0.05)):  # 0.05 on all linear layers of a mixture is seed 001's
        with pytest.raises(ValueError, match="ParamWrapper does not work with"):
            peft_parameters(tiny(model_type), lora)


def test_what_luthier_computes_itself_is_what_the_plan_takes_it_for() -> None:
    assert {name.split(".")[2] for name in FUSED} == FUSED_FAMILIES
    assert set(ACTIVATIONS) == FUSED_ACTIVATIONS
    assert PLAIN_HEADS == PLAIN

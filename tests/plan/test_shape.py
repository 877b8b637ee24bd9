"""Shapes by worked numbers, and what a config.json must have; `test_models_table.py` compares with transformers and PEFT."""

from typing import Any

import pytest

from luthier.core.errors import ModelError, RecipeError
from luthier.plan.adapted import adapted, adapter_parameters
from luthier.plan.shape import ModelShape, bundled, known_config, shape_of
from luthier.recipe.schema import Lora

GB = 1e9
PARAMETERS = {
    "Qwen/Qwen2.5-0.5B-Instruct": 0.494033,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.543714,
    "Qwen/Qwen2.5-3B-Instruct": 3.085939,
    "Qwen/Qwen2.5-7B-Instruct": 7.615617,
    "Qwen/Qwen2.5-14B-Instruct": 14.770034,
    "Qwen/Qwen2.5-32B-Instruct": 32.763876,
    "Qwen/Qwen2.5-72B-Instruct": 72.706204,
    "Qwen/Qwen3-0.6B": 0.596050,  # its file holds the tied head twice: 0.752
    "Qwen/Qwen3-1.7B": 1.720575,
    "Qwen/Qwen3-4B": 4.022468,
    "Qwen/Qwen3-8B": 8.190735,
    "Qwen/Qwen3-14B": 14.768307,
    "Qwen/Qwen3-32B": 32.762123,
    "Qwen/Qwen3-30B-A3B": 30.532123,
    "Qwen/Qwen3-235B-A22B": 235.093635,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": 79.674391,
    "Qwen/Qwen3.5-0.8B": 0.752393,
    "Qwen/Qwen3.5-2B": 1.881825,
    "Qwen/Qwen3.5-4B": 4.205751,
    "Qwen/Qwen3.5-9B": 8.953803,
    "Qwen/Qwen3.5-27B": 26.895998,  # all Qwen3.5 without their vision towers
    "Qwen/Qwen3.5-35B-A3B": 34.660611,
    "Qwen/Qwen3.5-122B-A10B": 122.111527,
    "Qwen/Qwen3.5-397B-A17B": 396.346350,
    "meta-llama/Llama-3.1-8B-Instruct": 8.030261,
    "meta-llama/Llama-3.1-70B-Instruct": 70.553706,
    "meta-llama/Llama-3.2-1B-Instruct": 1.235814,
    "meta-llama/Llama-3.2-3B-Instruct": 3.212750,
    "google/gemma-3-1b-it": 0.999886,
    "google/gemma-3-4b-it": 4.300079,
    "google/gemma-3-12b-it": 12.187325,
    "google/gemma-3-27b-it": 27.432407,
    "google/gemma-2-2b-it": 2.614342,
    "google/gemma-2-9b-it": 9.241706,
    "google/gemma-2-27b-it": 27.227128,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.248024,
    "mistralai/Mistral-Nemo-Instruct-2407": 12.247782,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23.572403,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46.702793,
    "microsoft/phi-4": 14.659507,
}
"""10⁹ of each entry: its makers' figure to the digits that they state (7.61, 30.5, 4.3); the others guard the table against slips."""
LLAMA_LIKE = {"model_type": "newcomer", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


def shape(hub_id: str, **changes: Any) -> ModelShape:
    config = known_config(hub_id)
    assert config is not None
    return shape_of({**config, **changes})


def newcomer(**changes: Any) -> dict[str, Any]:
    return {**LLAMA_LIKE, "num_attention_heads": 4, **changes}


def test_parameters_are_the_published_ones() -> None:
    counted = {shape(hub_id).parameters: hub_id for hub_id in reversed(tuple(bundled()))}  # the first id of each entry
    assert {hub_id: round(parameters / 1e9, 6) for parameters, hub_id in counted.items()} == PARAMETERS


def test_seed_001s_mixture_is_61_gb_in_bf16_and_a_tenth_of_it_active() -> None:
    mixture = shape("Qwen/Qwen3-Coder-30B-A3B-Instruct")
    assert mixture.parameters * 2 / GB == pytest.approx(61.06, abs=0.01)
    assert mixture.active_parameters / 1e9 == pytest.approx(3.35, abs=0.01)
    experts = sum(linear.parameters for linear in mixture.linears if linear.fused)
    assert experts == 48 * 128 * 3 * 2048 * 768  # 29.0 G of 30.5 G, none of it nn.Linear


def test_seed_004s_model_is_30_gb_in_float32_and_15_in_bf16() -> None:
    coder = shape("Qwen/Qwen2.5-Coder-7B-Instruct")
    assert coder.parameters * 4 / GB == pytest.approx(30.46, abs=0.01)  # the seed says 14
    assert coder.parameters * 2 / GB == pytest.approx(15.23, abs=0.01)


def test_seed_004s_adapter_has_5_million_parameters_not_7() -> None:
    lora = Lora(r=8, target_modules=("q_proj", "v_proj", "k_proj", "o_proj"))
    a_layer = 8 * ((3584 + 3584) + 2 * (3584 + 512) + (3584 + 3584))
    assert adapter_parameters(shape("Qwen/Qwen2.5-Coder-7B-Instruct"), lora) == 28 * a_layer == 5_046_272


def test_seed_001s_all_linear_reaches_experts_and_routers_and_makes_a_billion_parameters() -> None:
    mixture, lora = shape("Qwen/Qwen3-Coder-30B-A3B-Instruct"), Lora(r=16)
    assert {linear.name for linear in adapted(mixture, lora)} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate", "gate_proj", "up_proj", "down_proj"),
    }
    experts = 16 * (2 * (2048 + 2 * 768) + (768 + 2048))  # gate and up are one parameter, of rank 32
    attention = 16 * ((2048 + 4096) + 2 * (2048 + 512) + (4096 + 2048))
    assert adapter_parameters(mixture, lora) == 48 * (128 * experts + 16 * (2048 + 128) + attention) == 996_507_648


def test_seed_000s_all_linear_misses_the_experts_of_qwen3_5() -> None:
    reached = adapted(shape("Qwen/Qwen3.5-35B-A3B"), Lora())
    assert not any(linear.fused for linear in reached)
    assert {"in_proj_qkv", "in_proj_z", "out_proj", "shared_expert_gate", "down_proj"} < {linear.name for linear in reached}


def test_a_token_meets_only_its_experts() -> None:
    for linear in shape("Qwen/Qwen3-30B-A3B").linears:
        assert (linear.count, linear.active) == {"expert": (48 * 128, 48 * 8), "head": (1, 1)}.get(linear.role, (48, 48))


def test_a_vision_tower_is_held_and_adapted_but_meets_no_text() -> None:
    gemma = shape("google/gemma-3-4b-it")
    tower = [linear for linear in gemma.linears if linear.role == "vision"]
    assert sum(linear.parameters for linear in tower) == 27 * (4 * 1152**2 + 2 * 1152 * 4304)
    assert gemma.multiplied_parameters == shape_of(gemma_text()).multiplied_parameters
    assert set(tower) < set(adapted(gemma, Lora()))


def gemma_text() -> dict[str, Any]:
    config = known_config("google/gemma-3-4b-it")
    assert config is not None
    return dict(config["text_config"])


def test_serving_keeps_keys_and_values_windows_and_states() -> None:
    llama = shape("meta-llama/Llama-3.1-8B-Instruct")
    assert llama.cache_numbers(1) * 2 == 131_072  # bytes a token in bf16
    gemma = shape("google/gemma-3-1b-it")  # 4 full layers, 22 that see 512 tokens; one key and value head of 256
    assert (gemma.full_attention_layers, gemma.sliding_layers) == (4, 22)
    assert gemma.cache_numbers(4096) == 2 * 256 * (4 * 4096 + 22 * 512)
    hybrid = shape("Qwen/Qwen3.5-35B-A3B")  # 10 full layers; 30 with 32 states of 128 × 128, and 4 tokens of 8,192 channels
    assert hybrid.cache_numbers(1000) == 2 * 2 * 256 * 10 * 1000 + 30 * (32 * 128 * 128 + 8192 * 4)


def test_what_luthiers_own_layers_and_chunked_head_know() -> None:
    known = {hub_id: (shape(hub_id).layers_like_llama, shape(hub_id).plain_head) for hub_id in bundled()}
    assert known["Qwen/Qwen3-30B-A3B"] == known["meta-llama/Llama-3.2-1B"] == (True, True)
    assert known["google/gemma-3-1b-it"] == known["Qwen/Qwen3.5-4B"] == known["microsoft/phi-4"] == (False, False)
    assert not shape("meta-llama/Llama-3.2-1B", hidden_act="relu").layers_like_llama
    assert shape_of({"model_type": "gemma", "hidden_act": "gelu"}).layers_like_llama  # transformers takes it for tanh's


def test_an_unknown_model_of_llamas_form_is_taken_for_one_and_says_so() -> None:
    unknown, llama = shape_of(newcomer()), shape_of(newcomer(model_type="llama"))
    assert not unknown.known
    assert unknown.linears == llama.linears
    assert unknown.parameters == llama.parameters
    assert unknown.kv_heads == 4
    assert adapted(unknown, Lora(target_modules=("q_proj", "own_name")))  # its modules may have other names, too


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"hidden_size": None}, "hidden_size"), ({"num_experts": 8}, "num_experts"), ({"kv_lora_rank": 512}, "kv_lora_rank")],
)
def test_an_unknown_model_of_another_form_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named) as error:
        shape_of(newcomer(**changes))
    assert error.value.where == "config.json"
    assert error.value.change


def test_a_config_without_what_llama_has_is_refused() -> None:
    with pytest.raises(ModelError, match="'t5'"):
        shape_of({"model_type": "t5", "d_model": 512})


def test_one_half_of_fused_experts_is_refused_with_the_other_named() -> None:
    with pytest.raises(RecipeError) as error:
        adapted(shape("Qwen/Qwen3-30B-A3B"), Lora(target_modules=("q_proj", "gate_proj")))
    assert "up_proj" in error.value.change


def test_what_is_not_bundled_is_none() -> None:
    assert known_config("Qwen/Qwen3-7B") is None  # seed 003's "Qwen3-7B+": there is no such model


def test_ids_of_one_entry_differ_only_in_what_they_say() -> None:
    assert shape("Qwen/Qwen3-4B-Thinking-2507").max_positions == 262_144
    assert shape("Qwen/Qwen3-4B-Thinking-2507", max_position_embeddings=40_960) == shape("Qwen/Qwen3-4B")

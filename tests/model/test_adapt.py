"""Adapters: on the layers that were named, from the seed alone, and never on what would be lost."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from luthier.core.errors import ModelError, RecipeError
from luthier.data.tokenizer import load_tokenizer
from luthier.model.adapt import adapted_parts, add_lora, bits_of, check_provenance, load_adapter, missed_experts
from luthier.recipe.schema import Lora, Model
from luthier.train.objective import nll_sum
from tests.train.workshop import SHAPE, VOCABULARY, in_batches, ragged_rows, tiny_model


def mixture() -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **experts, vocab_size=VOCABULARY, initializer_range=0.2))


def test_all_linear_covers_every_linear_layer_but_the_head() -> None:
    model = add_lora(tiny_model(), Lora(), seed=0)
    parts = adapted_parts(model)
    assert len(parts.modules) == 2 * 7
    assert not any("lm_head" in name or "embed" in name for name in parts.modules)
    assert {name.split(".")[-3] for name, weight in model.named_parameters() if weight.requires_grad} == {"lora_A", "lora_B"}
    assert parts.num_trainable == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def test_an_adapter_is_a_function_of_its_seed_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (add_lora(tiny_model(), Lora(r=4), seed=seed) for seed in (1, 1, 2))
    weights = [torch.cat([w.flatten() for w in model.parameters() if w.requires_grad]) for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.get_rng_state())


def test_a_bfloat16_base_gets_a_float32_adapter() -> None:
    model = add_lora(tiny_model().to(torch.bfloat16), Lora(), seed=0)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}


def test_a_name_that_matches_nothing_is_an_error_with_the_nearest_names() -> None:
    with pytest.raises(RecipeError, match=r"'q_prj' matches no layer\n.*q_proj"):
        add_lora(tiny_model(), Lora(target_modules=("v_proj", "q_prj")), seed=0)
    with pytest.raises(RecipeError, match="'self_attn' matches no layer"):
        add_lora(tiny_model(), Lora(target_modules=("self_attn",)), seed=0)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_a_matrix_that_head_and_embedding_share_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="tied"):
        add_lora(tiny_model(tied=True), Lora(target_modules=("q_proj", name)), seed=0)
    parts = adapted_parts(add_lora(tiny_model(tied=False), Lora(target_modules=("q_proj", name)), seed=0))
    assert len(parts.modules) == 2 + 1


@pytest.mark.parametrize(
    ("option", "scaling"), [({}, 32 / 16), ({"use_rslora": True}, 32 / 4), ({"use_dora": True}, 32 / 16), ({"alpha": 8}, 0.5)]
)
def test_options_reach_the_adapter(option: dict[str, object], scaling: float) -> None:
    model = add_lora(tiny_model(), Lora.model_validate(option), seed=0)
    layer = model.get_submodule(adapted_parts(model).modules[0].join(["base_model.model.", ""]))
    assert layer.scaling["default"] == pytest.approx(scaling)
    assert bool(layer.lora_magnitude_vector) == bool(option.get("use_dora"))


def test_every_adapted_part_of_a_mixture_gets_a_gradient() -> None:
    model = add_lora(mixture(), Lora(r=4), seed=0)
    parts = adapted_parts(model)
    assert any(name.endswith("experts.down_proj") for name in parts.parameters)
    assert missed_experts(model.get_base_model(), parts.parameters) == ()
    nll_sum(model.train(), in_batches(ragged_rows(), 8)[0]).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if "lora_B" in name}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())


def test_experts_without_an_adapter_are_a_finding() -> None:
    model = mixture()
    parts = adapted_parts(add_lora(model, Lora(target_modules=("q_proj", "v_proj")), seed=0))
    (finding,) = missed_experts(model, parts.parameters)
    assert (finding.code, finding.severity) == ("experts-not-adapted", "warn")
    assert finding.evidence["parameters"] == 4


def test_dropout_is_on_every_adapted_layer_that_has_an_input_and_so_not_on_routers() -> None:
    model = add_lora(mixture(), Lora(dropout=0.1), seed=0)
    layers = [(name, layer.lora_dropout["default"]) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    without = {name.split(".")[-1] for name, dropout in layers if not isinstance(dropout, nn.Dropout)}
    assert without == {"gate"}
    assert sum("experts" in name for name, dropout in layers if isinstance(dropout, nn.Dropout)) == 2 * 2
    assert model.peft_config["default"].lora_dropout == 0.0  # or PEFT would not load the adapter again
    assert add_lora(tiny_model(), Lora(dropout=0.1), seed=0).peft_config["default"].lora_dropout == 0.1


def test_experts_are_reached_by_target_parameters() -> None:
    by_name = add_lora(mixture(), Lora(target_modules=("q_proj",), target_parameters="experts"), seed=0)
    assert {name.split(".")[-1] for name in adapted_parts(by_name).parameters} == {"gate_up_proj", "down_proj"}
    assert missed_experts(by_name.get_base_model(), adapted_parts(by_name).parameters) == ()
    one = add_lora(mixture(), Lora(target_modules=("q_proj",), target_parameters=("experts.down_proj",)), seed=0)
    assert {name.split(".")[-1] for name in adapted_parts(one).parameters} == {"down_proj"}


def test_a_parameter_that_is_not_there_is_an_error_with_those_that_are() -> None:
    with pytest.raises(RecipeError, match=r"'experts.w1' matches no fused weight\n.*experts.down_proj, experts.gate_up_proj, gate.weight"):
        add_lora(mixture(), Lora(target_parameters=("experts.w1",)), seed=0)
    with pytest.raises(RecipeError, match="this model has no fused weights"):
        add_lora(tiny_model(), Lora(target_parameters="experts"), seed=0)


def test_dora_on_fused_experts_is_refused() -> None:
    with pytest.raises(RecipeError, match="use_dora"):
        add_lora(mixture(), Lora(use_dora=True), seed=0)


def test_a_saved_adapter_gives_the_same_answers(tmp_path: Path) -> None:
    model = add_lora(tiny_model(), Lora(r=4), seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    batch = in_batches(ragged_rows(), 8)[0]
    loaded = load_adapter(tiny_model(), tmp_path)
    assert not loaded.training
    assert torch.equal(nll_sum(loaded, batch), nll_sum(model.eval(), batch))
    assert not torch.equal(nll_sum(loaded, batch), nll_sum(tiny_model().eval(), batch))


def test_a_folder_without_a_fitting_safetensors_adapter_is_refused(tmp_path: Path) -> None:
    add_lora(tiny_model(), Lora(r=4), seed=0).save_pretrained(str(tmp_path), save_embedding_layers=False)
    with pytest.raises(ModelError, match="does not fit"):
        load_adapter(tiny_model(hidden_size=64), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        load_adapter(tiny_model(), tmp_path)


def test_an_adapter_is_used_with_the_base_template_and_stop_ids_that_it_was_trained_with(tmp_path: Path) -> None:
    demo, tokenizer = Model(base="demo"), load_tokenizer(Model(base="demo"))
    check_provenance(tmp_path, demo, tokenizer)  # an adapter of another tool has no provenance.json
    own = {"base": "demo", "template_hash": tokenizer.template_hash, "stop_ids": list(tokenizer.stop_ids), "quantization": "none"}
    (tmp_path / "provenance.json").write_text(json.dumps(own))
    check_provenance(tmp_path, demo, tokenizer)
    for changed, told in (
        ({"base": "Qwen/Qwen3-0.6B"}, "base Qwen/Qwen3-0.6B, not demo"),
        ({"template_hash": "0123"}, f"chat template 0123, not {tokenizer.template_hash}"),
        ({"stop_ids": [7]}, r"stop ids \[7\], not"),
        ({"quantization": "nf4", "double_quant": True}, r"model\.quantization nf4, not none"),
    ):
        (tmp_path / "provenance.json").write_text(json.dumps({**own, **changed}))
        with pytest.raises(ModelError, match=told):
            check_provenance(tmp_path, demo, tokenizer)


def test_an_adapter_is_used_over_weights_of_the_bits_that_it_was_trained_over(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(Model(base="demo"))
    nested = Model(base="demo", quantization="nf4", double_quant=True)
    (tmp_path / "provenance.json").write_text(json.dumps({"base": "demo", **bits_of(nested)}))
    check_provenance(tmp_path, nested, tokenizer)
    for other, change in (
        ({"quantization": "none"}, "set model.quantization to nf4"),
        ({"double_quant": False}, "set model.double_quant to true"),
    ):
        with pytest.raises(ModelError) as refused:
            check_provenance(tmp_path, nested.model_copy(update=other), tokenizer)
        assert refused.value.change == change


def test_an_adapter_of_a_resized_tokenizer_is_refused_over_the_base_that_it_does_not_fit(tmp_path: Path) -> None:
    """Trap 16: rows for new tokens lie in the adapter's own embedding, which no base has; merged into one model it can be served."""
    resized = tiny_model()
    resized.resize_token_embeddings(resized.config.vocab_size + 3, mean_resizing=False)
    get_peft_model(resized, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="the adapter does not fit this base"):
        load_adapter(tiny_model(), tmp_path)

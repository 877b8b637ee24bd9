"""Training's arithmetic is tried on a slice of the model: right for every kind of model, and each fault that is planted is found."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.check import numbers
from luthier.check.numbers import DIVISION, KERNEL, LEAK, NO_GRADIENT, Trial, numeric_checks, trial_of
from luthier.check.outcome import Outcome
from luthier.model.adapt import base_of
from luthier.recipe.schema import Recipe
from tests.model.zoo import tiny
from tests.train.workshop import Workshop, ragged_rows, stored

FAULTS = [DIVISION, LEAK, NO_GRADIENT, KERNEL]


def recipe(tmp_path: Path, **sections: Any) -> Recipe:
    return Workshop(tmp_path).recipe(**sections)


def outcomes(tmp_path: Path, family: str = "qwen3", **sections: Any) -> dict[str, Outcome]:
    rows = stored(ragged_rows(), tmp_path)
    found = numeric_checks(recipe(tmp_path, **sections), tiny(family).config.to_dict(), rows)
    return {outcome.fault: outcome for outcome in found}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"lora": "none"},
        {"lora": {"use_dora": True}},
        {"data": {"packing": "bins"}},
        {"model": {"quantization": "nf4"}},
        {"lora": {"target_modules": ["q_proj", "down_proj"]}},
    ],
    ids=str,
)
def test_every_way_to_train_passes(tmp_path: Path, sections: dict[str, Any]) -> None:
    found = outcomes(tmp_path, **sections)
    assert {fault: outcome.state for fault, outcome in found.items()} == dict.fromkeys(FAULTS, "pass")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe", "gemma2", "qwen3_5_moe_text"])
def test_every_kind_of_model_passes_and_some_are_not_packed(tmp_path: Path, family: str) -> None:
    found = outcomes(tmp_path, family)
    assert "fail" not in {outcome.state for outcome in found.values()}
    plain = family in ("gemma2", "qwen3_5_moe_text")  # a window shorter than the rows, and layers with a state
    assert (found[KERNEL].state == "not applicable") == plain
    assert ("padded" in found[LEAK].compared) == plain


def test_shared_experts_that_peft_leaves_out_are_told(tmp_path: Path) -> None:
    """PEFT 0.21 turns the names of Qwen3-Next's experts into parameters, and forgets the layers of the same names."""
    outcome = outcomes(tmp_path, "qwen3_next")[NO_GRADIENT]
    assert outcome.state == "fail"
    assert "all-linear leaves out mlp.shared_expert.down_proj, mlp.shared_expert.gate_proj, mlp.shared_expert.up_proj" in outcome.compared


def test_without_packing_there_is_nothing_fused_to_compare(tmp_path: Path) -> None:
    assert outcomes(tmp_path, data={"packing": "off"})[KERNEL].compared == "nothing is fused or packed: data.packing is off"


def test_layers_that_the_slice_has_not_are_told(tmp_path: Path) -> None:
    found = outcomes(tmp_path, lora={"target_modules": ["model.layers.17.self_attn.q_proj"]})
    assert {outcome.state for outcome in found.values()} == {"not applicable"}
    assert "matches no layer" in found[LEAK].compared


def test_a_slice_that_does_not_fit_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "free_memory_bytes", lambda: 1000)
    assert "more than half of what is free" in outcomes(tmp_path)[DIVISION].compared


def test_experts_without_an_adapter_are_told(tmp_path: Path) -> None:
    assert "4 fused expert weights" in outcomes(tmp_path, "qwen3_5_moe_text")[NO_GRADIENT].compared
    with_experts = outcomes(tmp_path, "qwen3_5_moe_text", lora={"target_parameters": "experts"})[NO_GRADIENT]
    assert with_experts.state == "pass" and "fused" not in with_experts.compared


def trial(tmp_path: Path, **sections: Any) -> Trial:
    return trial_of(recipe(tmp_path, **sections), tiny("qwen3").config.to_dict(), stored(ragged_rows(), tmp_path))


def test_a_loss_that_is_a_mean_of_means_is_found(tmp_path: Path) -> None:
    """Here by what it does to the gradient: each micro batch weighs as much, however many rows it has."""
    tried = trial(tmp_path)
    model, _ = tried.build(pack=False)
    whole = tried.gradients(model, tried.padded(8))

    def mean(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(lambda gradient: gradient / len(output))

    base_of(model).get_decoder().layers[-1].register_forward_hook(mean)
    outcome = numbers._division(tried, model, whole)
    assert outcome.state == "fail" and "2 × 4 rows: " in outcome.compared


def test_a_layer_that_carries_over_from_row_to_row_is_found(tmp_path: Path) -> None:
    tried = trial(tmp_path)
    model, fusion = tried.build(pack=True)
    assert numbers._leak(tried, model, fusion).state == "pass"

    def carry(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + 0.1 * output.cumsum(-2)  # as a state does that nothing takes back where a row ends

    base_of(model).get_decoder().layers[0].register_forward_hook(carry)
    outcome = numbers._leak(tried, model, fusion)
    assert outcome.state == "fail" and "nats from the same row alone" in outcome.compared


def test_a_module_that_is_not_trained_is_found(tmp_path: Path) -> None:
    tried = trial(tmp_path)
    model, _ = tried.build(pack=False)
    for name, weight in model.named_parameters():
        if "layers.1.mlp.up_proj.lora_B" in name:
            torch.nn.init.zeros_(weight)
    outcome = numbers._no_gradient(tried, model, tried.gradients(model, tried.padded(8)))
    assert outcome.state == "fail" and "layers.1.mlp.up_proj.lora_A.default.weight has a gradient of zeros" in outcome.compared


def test_a_fused_function_that_forgets_a_scale_is_found(tmp_path: Path) -> None:
    tried = trial(tmp_path)
    model, _ = tried.build(pack=False)
    whole = tried.gradients(model, tried.padded(8))
    fused, fusion = tried.build(pack=True)
    assert numbers._kernel(tried, fused, fusion, whole).state == "pass"
    layer = base_of(fused).get_decoder().layers[0]
    forward = layer.forward
    layer.forward = lambda *given, **named: 1.01 * forward(*given, **named)
    outcome = numbers._kernel(tried, fused, fusion, whole)
    assert outcome.state == "fail" and "of itself away" in outcome.compared

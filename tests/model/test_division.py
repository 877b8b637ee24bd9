"""Which weights ranks divide: every family as transformers plans it and as Luthier's plan counts it, and what cannot be divided."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from luthier.core.errors import PlanRefused
from luthier.model.arrive import Bits, store
from luthier.model.division import Cut, cut_of, division_of
from luthier.model.load import load_model
from luthier.model.mesh import Axis, Piece
from luthier.model.tensor import as_if_whole, divide, numbers_of_all
from luthier.plan.adapted import adapter_parameters
from luthier.plan.families import FAMILIES
from luthier.plan.shape import shape_of
from luthier.plan.tensor import has_plan, indivisible, nearest
from luthier.recipe.schema import Lora, Model
from tests.model.zoo import tiny as with_numbers
from tests.plan.test_models_table import built, tiny

FIRST, SECOND = Axis(size=2, index=0), Axis(size=2, index=1)
PLANNED = [name for name, family in FAMILIES.items() if family.tensor]


def numbers(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("model_type", PLANNED)
def test_a_rank_holds_as_much_of_each_family_as_the_plan_counts(model_type: str) -> None:
    config = tiny(model_type)
    shape, model = shape_of(config), built(config)
    divided = sum(one.parameters - one.part(2).parameters for one in shape.linears)
    biases = sum(one.count * one.d_out // 2 for one in shape.linears if one.bias and one.divided == "columns")  # which it counts whole
    whole = numbers(model)
    divide(model, FIRST)
    assert whole - numbers(model) == divided + biases > whole / 10
    assert numbers_of_all(model) == whole


@pytest.mark.parametrize("model_type", [name for name in PLANNED if not name.endswith("_text")])
def test_a_rank_holds_one_half_of_each_adapter_whole_and_a_part_of_the_other(model_type: str) -> None:
    config, lora = tiny(model_type), Lora(r=4)
    model = built(config)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        divide(model, FIRST)
        with as_if_whole(model):
            adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert trained == adapter_parameters(shape_of(config), lora, 2) < adapter_parameters(shape_of(config), lora)


def test_the_ranks_parts_are_the_whole() -> None:
    whole, ranks = with_numbers("qwen3_moe"), [with_numbers("qwen3_moe") for _ in range(2)]
    for model, axis in zip(ranks, (FIRST, SECOND), strict=True):
        divide(model, axis)
    parts = [dict(model.named_parameters()) for model in ranks]
    for name, weight in whole.named_parameters():
        first, second = (part[name] for part in parts)
        if "gate_up_proj" in name:  # each rank has rows of the gate, and the same of up
            again = torch.cat([half for pair in zip(first.chunk(2, 1), second.chunk(2, 1), strict=True) for half in pair], 1)
        elif first.shape == weight.shape:
            again = first
        else:
            again = torch.cat([first, second], -1 if "o_proj" in name or "down_proj" in name else 0)
        assert torch.equal(again, weight), name


def test_a_part_is_an_ordinary_linear_layer_that_says_its_own_size() -> None:
    model = with_numbers("llama")
    divide(model, SECOND)
    layer = model.model.layers[0].self_attn
    assert type(layer.q_proj) is nn.Linear
    assert (layer.q_proj.out_features, layer.q_proj.in_features, layer.o_proj.in_features) == (32, 48, 32)
    assert layer.q_proj.weight.is_contiguous()
    assert division_of(model.lm_head) is division_of(model.model.norm) is division_of(model.model.embed_tokens) is None


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_rank_reads_its_part_of_each_matrix_and_quantises_that(tmp_path: Path, quantization: str) -> None:
    with_numbers("qwen3_moe").save_pretrained(tmp_path)
    model, cpu = Model(base=str(tmp_path), quantization=quantization), torch.device("cpu")
    read = load_model(model, torch.float32, cpu, SECOND)
    cut = load_model(Model(base=str(tmp_path)), torch.float32, cpu)
    divide(cut, SECOND)
    if quantization != "none":
        store(cut, Bits(kind=quantization, dtype=torch.float32))
    expected = dict(cut.named_parameters())
    assert dict(read.named_parameters()).keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in read.named_parameters())
    attention = read.model.layers[0].self_attn
    assert (attention.q_proj.out_features, attention.o_proj.in_features) == (32, 32)
    assert division_of(attention.q_proj) is not None and division_of(read.model.layers[1].mlp.experts) is not None


def test_of_widths_that_are_whole_blocks_the_bits_of_a_part_are_those_of_the_whole() -> None:
    """But for the second quantisation, of constants, which counts its blocks of 256 anew."""
    whole, part = (with_numbers("llama", hidden_size=128, intermediate_size=256) for _ in range(2))
    divide(part, SECOND)
    bits = Bits(kind="nf4", double_quant=False, dtype=torch.float32)
    forms = [store(model, bits) for model in (whole, part)]
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        cut, axis = cut_of(part, name) or pytest.fail(name)
        of_whole, of_part = (form[name].matrix(model.get_parameter(name)) for form, model in zip(forms, (whole, part), strict=True))
        assert torch.equal(cut.of(of_whole, axis), of_part)


def test_a_base_that_cannot_be_divided_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    with_numbers("qwen3").save_pretrained(tmp_path)
    with pytest.raises(PlanRefused, match="4 num_attention_heads and 2 num_key_value_heads"):
        load_model(Model(base=str(tmp_path)), torch.float32, torch.device("cpu"), Axis(size=4))


def test_a_rank_alone_divides_nothing() -> None:
    model = with_numbers("gpt2")
    divide(model, Axis())
    assert all(division_of(module) is None for module in model.modules())


def test_a_rank_has_two_boxes_of_what_is_packed_and_checkpoints_know_where() -> None:
    whole = torch.arange(48.0).view(8, 6)
    part = Cut(dim=-2, parts=2).of(whole, SECOND)
    piece = Piece(shape=(8, 6), offsets=(2, 0), divided=frozenset({"tensor"}), packed=2)
    for box, (row, column) in piece.boxes(part):
        assert torch.equal(box, whole[row : row + 2, column : column + 6])
    assert [offsets for _, offsets in piece.boxes(part)] == [(2, 0), (6, 0)]
    (only,) = Piece(shape=(8, 6), offsets=(0, 0)).boxes(whole)
    assert only == (whole, (0, 0))


def test_what_is_packed_is_divided_half_by_half() -> None:
    packed = torch.tensor([[1], [2], [3], [4], [10], [20], [30], [40]])
    assert Cut(dim=-2, parts=2).of(packed, SECOND).flatten().tolist() == [3, 4, 30, 40]
    assert Cut(dim=-2).of(packed, SECOND).flatten().tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("family", "changed", "ranks", "reason"),
    [
        ("gpt2", {}, 2, "transformers has no plan for tensor parallelism of it"),
        ("gemma", {}, 2, "4 num_attention_heads and 1 num_key_value_heads"),
        ("qwen3", {}, 4, "4 num_attention_heads and 2 num_key_value_heads"),
        ("llama", {"intermediate_size": 81}, 2, "model.layers.0.mlp.gate_proj.weight has the shape [81, 48]"),
        ("qwen3_moe", {"moe_intermediate_size": 33}, 2, "experts.gate_up_proj has the shape [4, 66, 48]"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused_with_the_reason(family: str, changed: dict[str, Any], ranks: int, reason: str) -> None:
    with pytest.raises(PlanRefused) as refused:
        divide(with_numbers(family, **changed), Axis(size=ranks))
    assert reason in refused.value.what
    assert "parallel.tensor=1" in refused.value.change


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_plan_refuses_what_loading_would(model_type: str) -> None:
    config = tiny(model_type)
    shape = shape_of(config)
    for ranks in (2, 3, 4, 8):
        try:
            divide(built(config), Axis(size=ranks))
            refused = False
        except PlanRefused:
            refused = True
        assert refused == (not has_plan(shape) or bool(indivisible(shape, ranks))), (ranks, indivisible(shape, ranks))


def test_the_nearest_number_of_ranks_divides_all_sizes() -> None:
    shape = shape_of(tiny("qwen3_moe", num_attention_heads=12, num_key_value_heads=6, head_dim=8))  # experts are 40 wide
    assert [nearest(shape, ranks) for ranks in (1, 2, 3, 6, 12)] == [1, 2, 2, 2, 2]
    assert indivisible(shape, 12)[:2] == ("6 key and value heads", "40 outputs of gate_proj")

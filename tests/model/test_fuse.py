"""What a model is fused to, what it is not, and why; in any case it computes what it did."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.data.pack import Node
from luthier.model.attention import NAME, Tree
from luthier.model.fuse import Fusion, fuse
from luthier.train.objective import nll_sum
from tests.model.zoo import (
    FAMILIES,
    LONGEST,
    VOCABULARY,
    adapted,
    assert_plain,
    engine_loss,
    gradients,
    in_packs,
    plain_loss,
    shared_rows,
    tiny,
)

ROWS = shared_rows()
DTYPES = [torch.float32, torch.bfloat16]


def fused(model: nn.Module, pack: bool = True, longest: int = LONGEST) -> Fusion:
    """Told without the note on a machine that has no C compiler."""
    fusion = fuse(model, pack=pack, longest=longest)  # type: ignore[arg-type]
    return replace(fusion, reasons=tuple(reason for reason in fusion.reasons if not reason.startswith("the kernels run in torch")))


def assert_trains_as_plain(model: nn.Module, expected: tuple[float, dict[str, Tensor]], packing: str) -> None:
    loss = engine_loss(model, in_packs(ROWS, packing))
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert_plain(gradients(model), expected[1])


def plain(model: nn.Module) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by transformers and PEFT."""
    loss = plain_loss(model.train(), ROWS)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), gradients(model)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_of_a_known_family_are_fused(family: str, dtype: torch.dtype) -> None:
    model = adapted(tiny(family, dtype))
    fusion = fused(model)
    assert fusion == Fusion(packs=True, num_layers=2)
    assert str(fusion) == "fused: 2 layers"
    assert model.get_base_model().config._attn_implementation == NAME


FOREIGN: dict[str, str] = {
    "gemma2": "the model's own layers; rows cannot be packed for this model: attention with softcap",
    "phi3": "fused: 8 adapters; 2 × Phi3DecoderLayer is not a layer that the fused functions know",
    "gpt2": "the model's own layers; 8 × ",
    "granite": "fused: 14 adapters; 2 × GraniteDecoderLayer is not a layer that the fused functions know",
}


@pytest.mark.parametrize("family", FOREIGN)
def test_another_family_computes_what_it_did_and_says_what_is_not_fused(family: str) -> None:
    """GPT-2 has learned positions, to which it matters that they begin anew in each row (trap 5)."""
    model = adapted(tiny(family, **{"sliding_window": 256} if family == "gemma2" else {}))
    expected = plain(model)
    fusion = fused(model)
    assert str(fusion).startswith(FOREIGN[family])
    assert fusion.packs == (family != "gemma2")
    for packing in ("bins", "tree") if fusion.packs else ("off",):
        assert_trains_as_plain(model, expected, packing)


STATEFUL: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 24, "n_groups": 1},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 48, "attention_window_size": 2 * LONGEST},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
}
"""Convolutions, state spaces and linear attention, which carry from one row of a pack into the next (trap 4)."""

FAINT: dict[str, dict[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 48, "mamba_n_heads": 4, "mamba_d_head": 12, "mamba_d_state": 8},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "num_dense_layers": 1,
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["mamba", "recurrent_gemma", "falcon_h1", "lfm2_moe"])
def test_a_leak_is_seen_however_small_the_weights_make_it(family: str, dtype: torch.dtype) -> None:
    small = {"initializer_range": 0.02, **STATEFUL.get(family, {}), **FAINT.get(family, {})}
    assert not fused(tiny(family, dtype, **small).eval()).packs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", STATEFUL)
def test_a_model_whose_layers_carry_state_is_never_packed(family: str, dtype: torch.dtype) -> None:
    model = tiny(family, dtype, **STATEFUL[family]).eval()
    fusion = fused(model)
    assert not fusion.packs
    assert str(fusion).startswith("the model's own layers; rows ")
    if dtype == torch.float32:
        rows = [row for row in ROWS if row.supervised.any()]
        with torch.no_grad():
            alone = sum(plain_loss(model, [row]).item() * int(row.supervised.sum()) for row in rows)
            padded = sum(nll_sum(model, batch).item() for batch in in_packs(rows, "off"))
        assert padded == pytest.approx(alone, rel=1e-5)


MASKED: dict[str, dict[str, Any]] = {
    "llama4_text": {
        "attention_chunk_size": 32,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 64,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
    },
    "qwen2_moe": {
        "use_sliding_window": True,
        "sliding_window": 32,
        "max_window_layers": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 32,
    },
    "phimoe": {"num_local_experts": 4, "sliding_window": 32},
}
"""Models that tell their window or chunk to the mask, and not to attention."""


@pytest.mark.parametrize("family", MASKED)
def test_a_window_that_only_the_mask_knows_is_not_packed(family: str) -> None:
    fusion = fused(tiny(family, **MASKED[family]))
    assert not fusion.packs
    assert "32" in str(fusion) and "window" in str(fusion)
    assert fused(tiny(family, **MASKED[family]), longest=32).packs  # no row is longer


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "fused: 2 layers"),
    "rank-stabilised": ({"use_rslora": True}, "fused: 2 layers"),
    "two kinds of layers": ({"target_modules": ["q_proj", "down_proj"]}, "fused: 2 layers"),
    "DoRA": ({"use_dora": True}, "the model's own layers; 16 × DoraLinearVariant is not plain LoRA"),
    "bias": ({"lora_bias": True}, "the model's own layers; 16 × several adapters, a merged one, or one with a bias"),
    "DoRA on one kind": (
        {"use_dora": True, "target_modules": ["v_proj"]},
        "the model's own layers; 4 × DoraLinearVariant is not plain LoRA",
    ),
    "all biases trained": ({"bias": "all"}, "the model's own layers; 16 × its own weights are trained"),
    "embeddings as well": ({"target_modules": ["q_proj", "embed_tokens"]}, "fused: 2 layers"),
    "head as well": ({"target_modules": ["q_proj", "lm_head"]}, "fused: 2 layers, 1 adapters"),
}


def with_options(**options: Any) -> PeftModel:
    base = tiny("llama")
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = get_peft_model(base, LoraConfig(**config))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if ("lora_B" in name or "lora_embedding_A" in name) and weight.ndim == 2:  # which begin at zero
                    weight.normal_(std=0.1)
    assert isinstance(model, PeftModel)
    return model


@pytest.mark.parametrize("option", OPTIONS)
def test_with_any_option_of_the_adapter_the_engine_trains_as_peft_does(option: str) -> None:
    """What the fused functions do not compute falls back, and is told (trap 27)."""
    options, told = OPTIONS[option]
    model = with_options(**options)
    expected = plain(model)
    fusion = fused(model)
    assert str(fusion) == told
    for packing in ("off", "bins", "tree"):
        assert_trains_as_plain(model, expected, packing)


@pytest.mark.parametrize("layer", [0, 1])
def test_layers_that_cannot_be_fused_stand_beside_those_that_are(layer: int) -> None:
    """The last one, if fused, gives the tokens that the loss needs; if it is not, the one before it gives all."""
    model = adapted(tiny("qwen3"))
    model.get_base_model().model.layers[layer].input_layernorm.weight.requires_grad_(True)
    expected = plain(model)
    fusion = fused(model)
    assert (fusion.packs, fusion.num_layers, fusion.num_linear) == (True, 1, 7)
    assert "1 × " in str(fusion) and "norms are trained" in str(fusion)
    for packing in ("bins", "tree"):
        assert_trains_as_plain(model, expected, packing)


def test_a_model_whose_own_weights_are_trained_is_packed_and_not_fused() -> None:
    model = tiny("qwen3")
    expected = plain(model)
    fusion = fused(model)
    assert fusion.packs and fusion.num_layers == fusion.num_linear == 0 and "trained" in str(fusion)
    for packing in ("bins", "tree"):
        assert_trains_as_plain(model, expected, packing)


@pytest.mark.parametrize("off", ["disabled", "merged"])
def test_an_adapter_switched_off_or_merged_after_fusing_is_so_in_packs_too(off: str) -> None:
    model = adapted(tiny("qwen3")).eval()
    with torch.no_grad():
        expected = plain_loss(tiny("qwen3").eval() if off == "disabled" else model, ROWS).item()
        assert fused(model).num_layers == 2
        if off == "merged":
            model.merge_adapter()
            losses = [packed_loss(model, packing) for packing in ("off", "tree")]
        else:
            with model.disable_adapter():
                losses = [packed_loss(model, packing) for packing in ("off", "tree")]
    assert losses == pytest.approx([expected] * 2, rel=1e-5)


def packed_loss(model: nn.Module, packing: str) -> float:
    batches = in_packs(ROWS, packing)
    return sum(nll_sum(model, batch).item() for batch in batches) / sum(batch.num_targets for batch in batches)


def doubled_norm(model: PreTrainedModel) -> None:
    """What a user may have hung onto a layer, and fused functions do not see."""
    model.model.layers[0].input_layernorm.register_forward_hook(lambda module, inputs, output: 2 * output)


def test_fused_functions_that_give_other_results_are_taken_back() -> None:
    model = adapted(tiny("qwen3"))
    doubled_norm(model.get_base_model())
    expected = plain(model)
    fusion = fused(model)
    assert fusion.packs and fusion.num_layers == fusion.num_linear == 0
    assert "gives other results" in str(fusion)
    assert_trains_as_plain(model, expected, "tree")


def orphaned(tree: Tree) -> Tree:
    """What rows share is lost to the rest of them; rows end to end are as they were."""
    return replace(tree, nodes=tuple(replace(node, end=node.stop) for node in tree.nodes))


def halved(tree: Tree) -> Tree:
    """Rows end to end are cut in two, of which the second does not see the first; trees are as they were."""
    if any(node.end > node.stop for node in tree.nodes):
        return tree
    halves = [(node, node.start + (node.stop - node.start) // 2) for node in tree.nodes]
    nodes = tuple(
        part for node, at in halves for part in (Node(start=node.start, stop=at, end=at), Node(start=at, stop=node.stop, end=node.end))
    )
    return replace(tree, nodes=nodes, depths=tuple(depth for node, at in halves for depth in (0, at - node.start)))


@pytest.mark.parametrize("fault", [orphaned, halved])
def test_a_model_that_loses_a_part_of_its_rows_in_trees_or_end_to_end_is_not_packed(fault: Callable[[Tree], Tree]) -> None:
    model = tiny("qwen3")

    def spoil(decoder: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**given, "tree": fault(given["tree"])} if "tree" in given else given

    model.model.register_forward_pre_hook(spoil, with_kwargs=True)
    fusion = fused(model)
    assert not fusion.packs
    assert "in a pack, their logits are" in str(fusion)


def test_attention_dropout_is_not_packed() -> None:
    fusion = fused(adapted(tiny("llama", attention_dropout=0.1)))
    assert (fusion.packs, fusion.num_layers) == (False, 0)
    assert "drop" in str(fusion)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "mamba"])
def test_the_model_is_left_in_its_mode_and_one_that_is_not_packed_with_its_attention(family: str, training: bool) -> None:
    model = adapted(tiny(family)) if family == "qwen3" else tiny(family)
    before = model.config._attn_implementation
    fused(model.train(training))
    assert model.training == training
    assert all(module.training == training for module in model.modules())
    assert (model.config._attn_implementation == before) == (family == "mamba")


def test_without_packs_only_dropout_is_replaced() -> None:
    model = adapted(tiny("qwen3"), dropout=0.1)
    forwards = {name: module.forward for name, module in model.named_modules() if not list(module.children())}
    assert fused(model, pack=False) == Fusion(packs=False)
    assert {name for name, module in model.named_modules() if name in forwards and module.forward != forwards[name]} == {
        name for name in forwards if "lora_dropout" in name
    }


Use = Callable[[PreTrainedModel | PeftModel], Tensor]
IDS = torch.arange(24).reshape(2, 12) * 5 % VOCABULARY


def written(model: PreTrainedModel | PeftModel) -> Tensor:
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    return model.generate(input_ids=IDS, attention_mask=mask, max_new_tokens=30, do_sample=False, pad_token_id=0)  # type: ignore[no-any-return]


def logits(model: PreTrainedModel | PeftModel) -> Tensor:
    mask = torch.ones_like(IDS)
    mask[1, 7:] = 0
    return model(input_ids=IDS, attention_mask=mask).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("use", [written, logits])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_pack_a_fused_model_is_what_it_was(family: str, use: Use) -> None:
    model = adapted(tiny(family)).eval()
    with torch.no_grad():
        before = use(model)
        assert fused(model).num_layers == 2
        assert torch.equal(use(model), before)


def test_saved_adapters_stay_plain(tmp_path: Path) -> None:
    model, other = adapted(tiny("qwen3"), dropout=0.1), adapted(tiny("qwen3"), dropout=0.1)
    fused(model)
    for name, one in (("fused", model), ("plain", other)):
        one.save_pretrained(str(tmp_path / name))
    assert (tmp_path / "fused" / "adapter_config.json").read_text() == (tmp_path / "plain" / "adapter_config.json").read_text()
    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("fused", "plain"))
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)

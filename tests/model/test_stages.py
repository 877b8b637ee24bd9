"""A model's layers divided among stages: one after the other they are the whole model, and each loads its own only."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.core.errors import PlanRefused
from luthier.model.adapt import add_lora
from luthier.model.load import load_model
from luthier.model.mesh import Axis
from luthier.model.pipeline import cut, elsewhere, in_form, part_of
from luthier.plan.families import FAMILIES
from luthier.plan.weights import Stage
from luthier.recipe.schema import Lora, Model
from tests.model.zoo import CPU, FOREIGN, adapted, tiny
from tests.plan.test_models_table import tiny as tiny_config

FIRST, MIDDLE, LAST = (
    Stage(start=0, layers=1, num_layers=4, in_flight=3),
    Stage(start=1, layers=2, num_layers=4, in_flight=2),
    Stage(start=3, layers=1, num_layers=4, in_flight=1),
)
STAGES = (FIRST, MIDDLE, LAST)
VISION = {"gemma3"}
"""Whose decoder is only a part of what transformers loads."""
IDS = torch.arange(12).view(2, 6) % 7


def stages_of(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model, cut into the first layer and the rest."""
    layers = model.config.get_text_config().num_hidden_layers
    for index, (start, count) in enumerate(((0, 1), (1, layers - 1))):
        part = copy.deepcopy(model)
        cut(part, Stage(start=start, layers=count, num_layers=layers, in_flight=2 - index), Axis(size=2, index=index), {})
        yield part


def with_numbers(model_type: str) -> PreTrainedModel:
    """A tiny model of a family, with random weights."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**tiny_config(model_type))).eval()
    return model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base of four layers with a head of its own."""
    tiny("qwen3_moe", num_hidden_layers=4).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(base: Path, stage: Stage) -> PreTrainedModel:
    return load_model(Model(base=str(base)), torch.float32, CPU, elsewhere=lambda empty: elsewhere(empty, stage))


@pytest.mark.parametrize("model_type", sorted(FAMILIES.keys() - VISION))
def test_stages_one_after_the_other_are_the_whole_model(model_type: str) -> None:
    whole = with_numbers(model_type)
    first, last = stages_of(whole)
    with torch.no_grad():
        hidden = first.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state
        assert torch.allclose(last(inputs_embeds=hidden, use_cache=False).logits, whole(input_ids=IDS, use_cache=False).logits, atol=1e-6)


@pytest.mark.parametrize("model_type", [*sorted(VISION), *sorted(FOREIGN.keys() - {"gemma2", "phi3"})])
def test_what_is_more_than_layers_one_after_the_other_is_refused(model_type: str) -> None:
    model = with_numbers(model_type) if model_type in VISION else tiny(model_type)
    with pytest.raises(PlanRefused, match=r"cannot pass hidden states on|outside of its layers"):
        list(stages_of(model))


@pytest.mark.parametrize("stage", STAGES, ids=["first", "middle", "last"])
def test_a_stage_loads_its_own_weights_and_reads_no_others(base: Path, stage: Stage) -> None:
    whole = load_model(Model(base=str(base)), torch.float32, CPU)
    foreign = re.compile("|".join(re.escape(name) for name in elsewhere(whole, stage)))
    file = base / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if not foreign.match(name)}, file, {"format": "pt"})
    own, expected = dict(loaded(base, stage).named_parameters()), dict(whole.named_parameters())
    assert own.keys() == expected.keys()
    assert {name for name, weight in own.items() if weight.is_meta} == {name for name in expected if foreign.match(name)}
    assert all(torch.equal(weight, expected[name]) for name, weight in own.items() if not weight.is_meta)
    assert not any(buffer.is_meta for _, buffer in loaded(base, stage).named_buffers())


@pytest.mark.parametrize("stage", STAGES, ids=["first", "middle", "last"])
def test_a_tied_matrix_is_on_the_first_stage_and_on_the_last(tmp_path: Path, stage: Stage) -> None:
    tiny("qwen3", num_hidden_layers=4).save_pretrained(tmp_path)
    model = loaded(tmp_path, stage)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.is_meta == (stage is MIDDLE)


def test_a_stages_adapter_is_the_whole_models(base: Path) -> None:
    bases = (load_model(Model(base=str(base)), torch.float32, CPU), loaded(base, MIDDLE))
    whole, stage = (add_lora(model, Lora(r=4, dropout=0.1), seed=3) for model in bases)
    expected = dict(whole.named_parameters())
    cut(stage, MIDDLE, Axis(size=3, index=1), {})
    trained = {name: weight for name, weight in stage.named_parameters() if weight.requires_grad}
    assert {name.split(".layers.")[1][0] for name in trained} == {"1", "2"}
    assert all(torch.equal(weight, expected[name]) for name, weight in trained.items())
    with in_form(stage):
        assert [name for name, _ in stage.named_parameters()] == [name for name, _ in whole.named_parameters()]
    assert {name for name, weight in stage.named_parameters() if weight.is_meta} == set()


def test_a_stage_in_which_nothing_would_be_trained_is_refused() -> None:
    model = adapted(tiny("llama", num_hidden_layers=4), target_modules=["model.layers.3.mlp.up_proj"])
    with pytest.raises(PlanRefused, match="nothing is trained in layers 1 to 2"):
        cut(model, MIDDLE, Axis(size=3, index=1), {})


def test_a_whole_model_is_no_part() -> None:
    model = tiny("llama")
    assert part_of(model) is None
    with in_form(model):
        assert isinstance(model.lm_head, nn.Linear)


def test_transformers_own_way_to_leave_weights_out_is_none(base: Path) -> None:
    """`luthier.model.patches.left_empty` can go when weights that a device_map sends to the meta device leave the others alone."""
    names = {name: "cpu" for name in ("model.embed_tokens", "model.layers.0", "model.rotary_emb", "model.norm", "lm_head")}
    model = AutoModelForCausalLM.from_pretrained(base, device_map={**names, **{f"model.layers.{index}": "meta" for index in (1, 2, 3)}})
    assert model.model.embed_tokens.weight.is_meta

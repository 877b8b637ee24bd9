"""A merged model is the live adapter in plain weights: summed in float32, rounded once, over the base that keeps more of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.core.errors import ModelError
from luthier.export.merge import divergence, merged
from luthier.model.adapt import load_adapter
from luthier.model.load import load_model
from luthier.recipe.schema import Model
from luthier.train.precision import Precision
from tests.model.zoo import adapted, row, shared_rows, tiny
from tests.train.workshop import CPU, FLOAT32

IDS = torch.tensor([[5, 17, 40, 3, 22, 61, 8]])
BFLOAT16 = Precision.of(torch.bfloat16, CPU)


def saved(model: PreTrainedModel, folder: Path, **lora: Any) -> tuple[Model, Path]:
    """The model as a base in a folder, and the folder of an adapter for it that has learned something."""
    model.save_pretrained(folder / "base")
    adapted(model, **lora).save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    return Model(base=str(folder / "base")), folder / "adapter"


def by_peft_alone(base: Model, adapter: Path) -> Tensor:
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.base, dtype=torch.float32), adapter).eval()
    return live(input_ids=IDS).logits


def reloaded(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("qwen3", {}),  # head and embedding are one matrix
        ("llama", {"use_rslora": True}),
        ("llama", {"use_dora": True}),
        ("llama", {"target_modules": ["q_proj", "lm_head"]}),
        ("gpt2", {}),  # whose matrices lie the other way round
        ("qwen3_moe", {"target_parameters": "experts"}),
        ("gpt_oss", {"target_parameters": "experts"}),  # with biases, and transposed
    ],
)
def test_merged_saved_and_loaded_by_transformers_it_computes_what_the_live_adapter_does(
    family: str, lora: dict[str, Any], tmp_path: Path
) -> None:
    base, adapter = saved(tiny(family), tmp_path, **lora)
    expected = by_peft_alone(base, adapter)
    plain = AutoModelForCausalLM.from_pretrained(base.base)(input_ids=IDS).logits
    found = reloaded(merged(base, adapter, torch.float32, "plain"), tmp_path / "merged")(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 0.1


def test_a_tied_head_stays_tied_and_as_it_was(tmp_path: Path) -> None:
    base, adapter = saved(tiny("qwen3"), tmp_path)
    model = reloaded(merged(base, adapter, torch.float32, "plain"), tmp_path / "merged")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, AutoModelForCausalLM.from_pretrained(base.base).lm_head.weight)


@pytest.mark.parametrize(("family", "lora"), [("llama", {}), ("qwen3_moe", {"target_parameters": "experts"})])
def test_each_sum_is_rounded_once_where_peft_would_round_twice(family: str, lora: dict[str, Any], tmp_path: Path) -> None:
    base, adapter = saved(tiny(family, torch.bfloat16), tmp_path, **lora)
    once = {name: weight.bfloat16() for name, weight in merged(base, adapter, torch.float32, "plain").named_parameters()}
    found = dict(merged(base, adapter, torch.bfloat16, "plain").named_parameters())
    assert [name for name, weight in once.items() if not torch.equal(found[name], weight)] == []
    peft = load_adapter(load_model(base, torch.bfloat16, CPU), adapter).merge_and_unload(safe_merge=True)
    assert any(not torch.equal(weight, once[name]) for name, weight in peft.named_parameters())


@pytest.mark.parametrize(("family", "lora"), [("llama", {}), ("qwen3_moe", {"target_parameters": "experts"})])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_over_few_bits_the_base_it_was_trained_on_keeps_the_adapter_and_the_plain_base_loses_some(
    family: str, lora: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    base, adapter = saved(tiny(family), tmp_path, **lora)
    few = base.model_copy(update={"quantization": kind})
    live = load_adapter(load_model(few, torch.float32, CPU), adapter)
    kl = {over: divergence(live, merged(few, adapter, torch.float32, over), shared_rows()[:6], FLOAT32) for over in ("trained", "plain")}
    assert kl["trained"] < 1e-6 < kl["plain"]


def test_the_kl_is_that_of_the_whole_vocabulary_at_supervised_tokens(tmp_path: Path) -> None:
    one, other = tiny("llama").eval(), tiny("llama", initializer_range=0.2).eval()
    rows = [row([5, 17, 40, 3], [2, 3]), row([8, 9], [1])]
    p, q = (
        torch.cat([model(input_ids=torch.tensor(each.ids[None].astype("int64"))).logits[0][:-1][each.supervised[1:]] for each in rows])
        for model in (one, other)
    )
    expected = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()
    assert divergence(one, other, rows, FLOAT32) == pytest.approx(expected.item(), rel=1e-5)
    assert divergence(one, one, rows, FLOAT32) == 0.0


def test_a_sum_outside_the_range_of_float16_is_refused(tmp_path: Path) -> None:
    base, adapter = saved(tiny("llama"), tmp_path, alpha=1e9)
    with pytest.raises(ModelError, match=r"outside the range of float16\n.*bfloat16"):
        merged(base, adapter, torch.float16, "plain")
    merged(base, adapter, torch.bfloat16, "plain")


@pytest.mark.parametrize("module", ["export.merge", "train.final", "train.run", "train.probe", "evaluate.run", "check.run", "serve.served"])
def test_importing_it_prints_nothing(module: str) -> None:
    """PEFT, imported first, would have bitsandbytes look for a kernel of the hub's, and say so."""
    ended = subprocess.run([sys.executable, "-c", f"import luthier.{module}"], capture_output=True, text=True, timeout=120, check=True)
    assert "kernel" not in ended.stdout + ended.stderr


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    _, adapter = saved(tiny("llama"), tmp_path)
    wider = tmp_path / "wider"
    tiny("llama", hidden_size=64).save_pretrained(wider)
    with pytest.raises(ModelError, match="does not fit this base"):
        merged(Model(base=str(wider)), adapter, torch.float32, "plain")

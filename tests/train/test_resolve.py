"""What `auto` becomes, and that it is told."""

import sys
from dataclasses import replace

import pytest
import torch

from luthier.core.errors import PlanRefused, RecipeError
from luthier.model.fuse import Fusion, fuse
from luthier.recipe.schema import Checkpoints, Recipe, Training
from luthier.train import resolve
from luthier.train.order import MicroBatchSize
from luthier.train.resolve import Workload, activation_bytes_per_token, resolve_ending, resolve_packing, resolve_sizes
from luthier.train.run import _workload
from tests.model.zoo import adapted, bytes_kept, in_packs, tiny
from tests.train.workshop import Workshop, ragged_rows, tiny_model

WORKLOAD = Workload(longest=100, supervised_share=0.5, dtype=torch.float32, fused=False, logits_in_chunks=True)


def test_a_given_micro_batch_is_taken_as_it_is() -> None:
    sizes = resolve_sizes(tiny_model(), Training(micro_batch_size=3, gradient_checkpointing=True), WORKLOAD)
    assert sizes.micro_batch == MicroBatchSize(rows=3, tokens=300)
    assert sizes.checkpoint_activations


def test_an_auto_micro_batch_has_the_token_budget_of_the_device() -> None:
    sizes = resolve_sizes(
        tiny_model(), Training(), Workload(longest=300, supervised_share=0.5, dtype=torch.float32, fused=False, logits_in_chunks=True)
    )
    assert sizes.micro_batch == MicroBatchSize(rows=16, tokens=4096)
    assert {item.path: item.value for item in sizes.resolved} == {"training.micro_batch_size": 13, "training.gradient_checkpointing": False}
    long = replace(WORKLOAD, longest=9000)
    assert resolve_sizes(tiny_model(), Training(), long).micro_batch.tokens == 9000


def test_activations_that_do_not_fit_are_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(resolve, "free_memory_bytes", lambda device: 100 * activation_bytes_per_token(model, WORKLOAD, checkpointing=False))
    assert resolve_sizes(model, Training(), WORKLOAD).checkpoint_activations
    assert not resolve_sizes(model, Training(gradient_checkpointing=False), WORKLOAD).checkpoint_activations
    monkeypatch.setattr(resolve, "free_memory_bytes", lambda device: 200 * activation_bytes_per_token(model, WORKLOAD, checkpointing=False))
    assert not resolve_sizes(model, Training(), WORKLOAD).checkpoint_activations


@pytest.mark.parametrize("packing", ["off", "bins"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma"])
def test_the_estimate_of_activations_is_within_a_factor_of_two(name: str, packing: str) -> None:
    base = tiny(name, num_hidden_layers=4)
    model, (batch,) = adapted(base, r=16).train(), in_packs(ragged_rows([40] * 4), packing)
    fused = fuse(model, pack=packing != "off", longest=40).num_layers == 4
    assert fused == (packing != "off")
    loss, kept = bytes_kept(model, batch)
    workload = Workload(
        longest=40, supervised_share=batch.num_targets / batch.num_tokens, dtype=torch.float32, fused=fused, logits_in_chunks=True
    )
    estimated = activation_bytes_per_token(base, workload, checkpointing=False) * batch.num_tokens
    assert loss.requires_grad
    assert 0.5 < estimated / kept < 2


def test_with_validation_rows_the_best_is_kept_and_patience_is_three() -> None:
    ending = resolve_ending(Checkpoints(), validation_rows=10)
    assert (ending.best, ending.patience) == (True, 3)
    ending = resolve_ending(Checkpoints(), validation_rows=0)
    assert (ending.best, ending.patience) == (False, sys.maxsize)
    ending = resolve_ending(Checkpoints(final="last", early_stopping_patience="off"), validation_rows=10)
    assert (ending.best, ending.patience) == (False, sys.maxsize)


@pytest.mark.parametrize(("key", "value"), [("final", "best"), ("early_stopping_patience", 2), ("best_by", "answers.exact")])
def test_a_wish_for_the_best_without_validation_rows_is_refused(key: str, value: object) -> None:
    with pytest.raises(RecipeError, match=rf"checkpoints\.{key}.*no validation rows"):
        resolve_ending(Checkpoints.model_validate({key: value}), validation_rows=0)


def packing(wished: str, fusion: Fusion, share: float = 0.0, attention: str = "auto") -> tuple[str, str]:
    data = {"sources": [{"path": "rows.jsonl"}], "packing": wished}
    recipe = Recipe.model_validate({"name": "tiny", "model": {"base": "demo", "attention": attention}, "data": data})
    return resolve_packing(recipe, fusion, lambda: share)


PACKS, ISOLATED = Fusion(packs=True, num_layers=2), Fusion(packs=False, reasons=("attention with softcap",))


@pytest.mark.parametrize(("share", "value"), [(0.0, "bins"), (0.049, "bins"), (0.05, "tree"), (0.6, "tree")])
def test_auto_packing_is_a_tree_where_enough_is_shared(share: float, value: str) -> None:
    chosen, why = packing("auto", PACKS, share)
    assert chosen == value
    assert f"{share:.0%}" in why


@pytest.mark.parametrize("wished", ["tree", "bins", "off"])
def test_a_packing_that_the_recipe_names_is_taken_and_the_rows_are_not_looked_at(wished: str) -> None:
    assert packing(wished, PACKS, share=float("nan")) == (wished, "the recipe says so")


def test_a_model_that_cannot_be_packed_is_padded_under_auto_and_refused_where_packs_were_asked_for() -> None:
    assert packing("auto", ISOLATED) == ("off", "attention with softcap")
    assert packing("off", ISOLATED) == ("off", "the recipe says so")
    for wished in ("tree", "bins"):
        with pytest.raises(PlanRefused, match=r"attention with softcap(?s:.*)data\.packing"):
            packing(wished, ISOLATED)


def test_an_attention_that_the_recipe_names_cannot_be_packed() -> None:
    assert packing("auto", Fusion(packs=False), attention="sdpa") == ("off", "model.attention is sdpa")
    with pytest.raises(PlanRefused, match=r"model\.attention is sdpa"):
        packing("tree", Fusion(packs=False), attention="sdpa")


@pytest.mark.parametrize(
    ("lora", "fused", "in_chunks"),
    [({}, True, True), ({"use_dora": True}, False, True), ({"target_modules": ["q_proj", "lm_head"]}, True, False), ("none", False, False)],
)
def test_memory_is_estimated_for_what_will_run(workshop: Workshop, lora: object, fused: bool, in_chunks: bool) -> None:
    job = workshop.job(lora=lora)
    workload = _workload(job, tiny_model(), torch.float32, pack=True)
    assert (workload.fused, workload.logits_in_chunks) == (fused, in_chunks)

"""What `auto` becomes, and that it is told."""

import sys

import pytest
import torch

from luthier.core.errors import RecipeError
from luthier.recipe.schema import Checkpoints, Training
from luthier.train import resolve
from luthier.train.order import MicroBatchSize
from luthier.train.resolve import Workload, activation_bytes_per_token, resolve_ending, resolve_sizes
from tests.train.workshop import in_batches, ragged_rows, tiny_model

WORKLOAD = Workload(longest=100, supervised_share=0.5, dtype=torch.float32)


def test_a_given_micro_batch_is_taken_as_it_is() -> None:
    sizes = resolve_sizes(tiny_model(), Training(micro_batch_size=3, gradient_checkpointing=True), WORKLOAD)
    assert sizes.micro_batch == MicroBatchSize(rows=3, tokens=sys.maxsize)
    assert sizes.checkpoint_activations


def test_an_auto_micro_batch_has_the_token_budget_of_the_device() -> None:
    sizes = resolve_sizes(tiny_model(), Training(), Workload(longest=300, supervised_share=0.5, dtype=torch.float32))
    assert sizes.micro_batch == MicroBatchSize(rows=16, tokens=2048)
    assert {item.path: item.value for item in sizes.resolved} == {"training.micro_batch_size": 6, "training.gradient_checkpointing": False}
    long = Workload(longest=9000, supervised_share=0.5, dtype=torch.float32)
    assert resolve_sizes(tiny_model(), Training(), long).micro_batch.tokens == 9000


def test_activations_that_do_not_fit_are_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(resolve, "free_memory_bytes", lambda device: 100 * activation_bytes_per_token(model, WORKLOAD, checkpointing=False))
    assert resolve_sizes(model, Training(), WORKLOAD).checkpoint_activations
    assert not resolve_sizes(model, Training(gradient_checkpointing=False), WORKLOAD).checkpoint_activations
    monkeypatch.setattr(resolve, "free_memory_bytes", lambda device: 200 * activation_bytes_per_token(model, WORKLOAD, checkpointing=False))
    assert not resolve_sizes(model, Training(), WORKLOAD).checkpoint_activations


def test_the_estimate_of_activations_is_within_a_factor_of_two() -> None:
    from luthier.model.adapt import add_lora
    from luthier.recipe.schema import Lora
    from luthier.train.objective import nll_sum

    base = tiny_model()
    model, batch = add_lora(base, Lora(), seed=0).train(), in_batches(ragged_rows([40] * 8), 8)[0]
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = nll_sum(model, batch)
    workload = Workload(longest=40, supervised_share=batch.num_targets / batch.num_tokens, dtype=torch.float32)
    estimated = activation_bytes_per_token(base, workload, checkpointing=False) * batch.num_tokens
    assert loss.requires_grad
    assert 0.5 < estimated / sum(kept.values()) < 2


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

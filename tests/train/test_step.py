"""One update: divided by the global count, clipped, and not made at all where it is not finite."""

import math

import pytest
import torch
from torch import Tensor, nn

from luthier.model.fuse import fuse
from luthier.model.place import trained_of
from luthier.recipe.schema import Training
from luthier.train.optim import make_optimizer
from luthier.train.precision import Precision
from luthier.train.step import StepRecord, train_step
from tests.model.zoo import LONGEST, adapted, in_packs, shared_rows, tiny
from tests.train.workshop import CPU, FLOAT32, in_batches, ragged_rows, tiny_model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, precision: Precision = FLOAT32, max_norm: float = 1.0) -> StepRecord:
    return train_step(model, optimizer, in_batches(ragged_rows(), 3), precision=precision, max_norm=max_norm, seeds=(0, 1))


def explode(_: nn.Module, gradients: tuple[Tensor, ...], __: object) -> tuple[Tensor, ...]:
    """A backward hook after which no gradient is finite."""
    return tuple(gradient * math.inf for gradient in gradients)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_clipping_bounds_the_update_and_the_norm_is_recorded_before_it() -> None:
    moved = {}
    for max_norm in (0.0, 0.01):
        model = tiny_model().train()
        before = weights(model)
        record = step(model, torch.optim.SGD(model.parameters(), lr=1.0), max_norm=max_norm)
        squares = [((after - old) ** 2).sum() for after, old in zip(weights(model), before, strict=True)]
        moved[max_norm] = (torch.stack(squares).sum().sqrt().item(), record.grad_norm)
    assert moved[0.0][0] == pytest.approx(moved[0.0][1], rel=1e-4)
    assert moved[0.01][0] == pytest.approx(0.01, rel=1e-2)
    assert moved[0.01][1] == moved[0.0][1] > 0.1


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_optimizer(poison: str) -> None:
    model = tiny_model().train()
    optimizer = make_optimizer(trained_of(model), Training(learning_rate=0.01, weight_decay=0.1))
    step(model, optimizer)
    before, moments = weights(model), [value.clone() for state in optimizer.state.values() for value in state.values()]
    if poison == "loss":
        hook = model.lm_head.register_forward_hook(lambda _, __, logits: logits * math.nan)
    else:
        hook = model.model.layers[0].register_full_backward_hook(explode)
    record = step(model, optimizer)
    hook.remove()
    assert not record.finite
    assert math.isfinite(record.loss) == (poison == "gradient")
    assert all(torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))
    assert all(torch.equal(old, new) for old, new in zip(moments, (v for s in optimizer.state.values() for v in s.values()), strict=True))
    assert step(model, optimizer).finite


def test_float16_halves_a_loss_scale_that_overflows_and_loses_no_step() -> None:
    plain, scaled = tiny_model().train(), tiny_model().train()
    expected = step(plain, torch.optim.SGD(plain.parameters(), lr=0.01))
    precision = Precision(device=CPU, dtype=torch.float16, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**24))
    found = step(scaled, torch.optim.SGD(scaled.parameters(), lr=0.01), precision=precision)
    assert found.finite
    assert found.num_overflows > 0
    assert precision.scaler.get_scale() == 2.0 ** (24 - found.num_overflows)
    assert found.loss == pytest.approx(expected.loss, rel=2e-3)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=2e-2)


def test_float16_that_overflows_at_any_scale_is_not_finite() -> None:
    model = tiny_model().train()
    before = weights(model)
    model.model.layers[0].register_full_backward_hook(explode)
    precision = Precision(device=CPU, dtype=torch.float16, scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    assert not step(model, torch.optim.SGD(model.parameters(), lr=0.01), precision=precision).finite
    assert all(torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))


def test_full_fine_tuning_in_bfloat16_keeps_float32_weights_and_gradients() -> None:
    model = tiny_model().train()
    record = step(model, torch.optim.SGD(model.parameters(), lr=1e-6), precision=Precision.of(torch.bfloat16, CPU))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    reference = step(tiny := tiny_model().train(), torch.optim.SGD(tiny.parameters(), lr=1e-6))
    assert record.loss == pytest.approx(reference.loss, rel=1e-2)
    assert record.loss != reference.loss


def test_every_seed_and_step_has_its_own_dropout_and_no_generator_has_a_say() -> None:
    losses = []
    for seeds in ((0, 1), (0, 2), (1, 1), (0, 1)):
        model = adapted(tiny("qwen3"), dropout=0.3).train()
        fuse(model, pack=False, longest=LONGEST)
        optimizer = make_optimizer(trained_of(model), Training(learning_rate=1e-3))
        losses.append(train_step(model, optimizer, in_packs(shared_rows(), "off"), precision=FLOAT32, max_norm=1.0, seeds=seeds).loss)
        torch.rand(3)
    assert losses[3] == losses[0]
    assert len(set(losses)) == 3


def test_a_rank_without_rows_needs_no_loss_to_scale() -> None:
    model = tiny_model().train()
    scaled = Precision(device=CPU, dtype=torch.float16, scaler=torch.amp.GradScaler("cpu"))
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)  # that other ranks have found
    record = train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), [], precision=scaled, max_norm=1.0, seeds=(0, 1))
    assert (record.num_tokens, record.num_targets, record.finite) == (0, 0, True)

"""The same rows in any division into micro batches give one loss and one gradient (traps 1 and 7)."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from luthier.data.store import TokenRow
from luthier.model.adapt import add_lora
from luthier.recipe.schema import Lora
from luthier.train.step import train_step
from tests.train.workshop import FLOAT32, in_batches, ragged_rows, tiny_model


class Keep(torch.optim.Optimizer):
    """Updates nothing and keeps the gradients it was given."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(list(parameters), {})
        self.gradients: list[Tensor] = []

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.gradients = [parameter.grad.clone() for group in self.param_groups for parameter in group["params"]]


def loss_and_gradients(make: object, rows: list[TokenRow], size: int, pad_id: int = 0) -> tuple[float, list[Tensor]]:
    model = make()  # type: ignore[operator]
    optimizer = Keep([parameter for parameter in model.parameters() if parameter.requires_grad])
    record = train_step(model.train(), optimizer, in_batches(rows, size, pad_id), precision=FLOAT32, max_norm=0.0, seeds=(0, 1))
    return record.loss, optimizer.gradients


def adapted() -> nn.Module:
    model = add_lora(tiny_model("llama"), Lora(r=4), seed=1)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zero in a new adapter, which would leave lora_A without a gradient
                weight.normal_(std=0.05)
    return model


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
        assert other.norm() > 0


@pytest.mark.parametrize("make", [tiny_model, adapted])
def test_one_of_eight_is_eight_of_one_is_four_of_two(make: object) -> None:
    loss, gradients = loss_and_gradients(make, ragged_rows(), 8)
    for size in (1, 2, 3):
        other_loss, other_gradients = loss_and_gradients(make, ragged_rows(), size)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert_close(other_gradients, gradients)


def test_the_pad_token_changes_no_gradient_even_as_end_of_turn() -> None:
    rows = ragged_rows()
    end_of_turn = int(rows[0].ids[-1])
    _, gradients = loss_and_gradients(adapted, rows, 8)
    _, padded = loss_and_gradients(adapted, rows, 8, pad_id=end_of_turn)
    assert_close(padded, gradients)

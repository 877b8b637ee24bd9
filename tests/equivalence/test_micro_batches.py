"""The same rows in any division into micro batches give one loss and one gradient (traps 1 and 7), with dropout too."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from luthier.data.store import TokenRow
from luthier.model.adapt import add_lora
from luthier.model.fuse import fuse
from luthier.recipe.schema import Lora
from luthier.train.run import train
from tests.model.zoo import LONGEST, in_packs, shared_rows, tiny
from tests.model.zoo import adapted as zoo_adapted
from tests.train.workshop import Workshop, in_batches, ragged_rows, step_gradients, tiny_model


def loss_and_gradients(make: object, rows: list[TokenRow], size: int, pad_id: int = 0) -> tuple[float, list[Tensor]]:
    return step_gradients(make(), in_batches(rows, size, pad_id))  # type: ignore[operator]


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


def test_updates_with_dropout_do_not_depend_on_the_division_padded_or_in_bins(workshop: Workshop) -> None:
    """A token's mask follows from (seed, step, its row and position, module), not from the rows beside it."""
    divisions = {"one": ("off", 1), "four": ("off", 4), "bins": ("bins", 4), "small bins": ("bins", 1)}
    adapters = {}
    for name, (packing, rows) in divisions.items():
        sections = {"data": {"packing": packing}, "training": {"micro_batch_size": rows, "max_steps": 6}, "checkpoints": {"final": "last"}}
        job = workshop.job(name, lora={"dropout": 0.3}, **sections)
        train(job)
        adapters[name] = load_file(job.folder.adapter / "adapter_model.safetensors")
    expected = adapters.pop("one")
    for found in adapters.values():
        assert_close(list(found.values()), list(expected.values()))


def test_an_adapted_head_drops_by_token_too() -> None:
    """It sees only the tokens before a target, and drops by their keys."""
    lora, rows, found = {"dropout": 0.3, "target_modules": ("q_proj", "lm_head")}, shared_rows(), []
    for pack, batches in ((False, in_batches(rows, 1)), (False, in_batches(rows, 4)), (True, in_packs(rows, "bins"))):
        model = zoo_adapted(tiny("llama"), **lora)
        fuse(model, pack=pack, longest=LONGEST)
        found.append(step_gradients(model, batches)[1])
    for gradients in found[1:]:
        assert_close(gradients, found[0])

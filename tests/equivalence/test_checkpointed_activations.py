"""Recomputed activations: the same gradients, less memory, with an adapter on frozen weights (trap 26)."""

import pytest
import torch
from torch import Tensor, nn

from luthier.model.dropout import draw
from luthier.train.run import _set_up
from tests.model.zoo import bytes_kept, in_packs
from tests.train.workshop import Workshop, ragged_rows


def gradients_and_saved_bytes(model: nn.Module, packing: str) -> tuple[dict[str, Tensor], int]:
    """Gradients of one micro batch, and the bytes that its forward pass kept for the backward, weights apart."""
    batch = in_packs(ragged_rows([40] * 8), packing, 8 * 40)[0]
    draw(model, batch.keys_A, batch.needed_S, (0, 1))
    loss, kept = bytes_kept(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}, kept


@pytest.mark.parametrize("packing", ["off", "bins", "tree"])
@pytest.mark.parametrize("lora", [{"dropout": 0.3}, "none"])
def test_gradients_are_equal_and_less_is_kept(workshop: Workshop, lora: object, packing: str) -> None:
    found = {}
    for recompute in (False, True):
        job = workshop.job(f"run-{recompute}", lora=lora, data={"packing": packing}, training={"gradient_checkpointing": recompute})
        model = _set_up(job)[0].model.train()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.05)
        found[recompute] = gradients_and_saved_bytes(model, packing)
    (plain, plain_bytes), (recomputed, recomputed_bytes) = found[False], found[True]
    assert plain.keys() == recomputed.keys()
    assert all(plain[name].abs().max() > 0 for name in plain if "norm" not in name)
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=1e-6, atol=1e-7)
    assert recomputed_bytes < plain_bytes / (3 if packing == "off" or lora == "none" else 2.5)  # fused functions keep little in any case

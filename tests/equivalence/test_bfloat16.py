"""In bfloat16 the engine is no farther from float32 than transformers and PEFT are, and early updates are not lost (trap 36)."""

import functools
from collections.abc import Callable, Sequence
from statistics import geometric_mean

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.model.adapt import add_lora
from luthier.model.fuse import fuse
from luthier.model.place import trained_of
from luthier.recipe.schema import Lora, Training
from luthier.train.objective import nll_sum
from luthier.train.optim import make_optimizer
from luthier.train.precision import Precision
from luthier.train.step import train_step
from tests.model.zoo import (
    CPU,
    FAMILIES,
    LONGEST,
    adapted,
    by_peft,
    gradients,
    in_numbers,
    in_packs,
    plain_loss,
    quantized,
    shared_rows,
    tiny,
)

EXACT, HALF = Precision.of(torch.float32, CPU), Precision.of(torch.bfloat16, CPU)
ROWS = [row for row in shared_rows() if row.supervised.any()]
SEEDS = range(3)
DENSE = [family for family in FAMILIES if family != "qwen3_moe"]


def base_of(family: str, seed: int, precision: Precision) -> PreTrainedModel:
    """Weights that bfloat16 knows exactly, in either type."""
    model, generator = tiny(family, hidden_size=96, intermediate_size=160), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
            weight.copy_(weight.bfloat16())
    return model.to(precision.dtype)


@functools.cache
def plain_gradient(family: str, seed: int, precision: Precision) -> Tensor:
    model = by_peft(adapted(base_of(family, seed, precision))).train()
    with precision.autocast():
        loss = plain_loss(model, ROWS)
    loss.backward()  # type: ignore[no-untyped-call]
    return flat(model)


def engine_gradient(family: str, seed: int, packing: str) -> Tensor:
    model = fused(adapted(base_of(family, seed, HALF)))
    batches = in_packs(ROWS, packing)
    num_targets = sum(batch.num_targets for batch in batches)
    for batch in batches:
        with HALF.autocast():
            loss = nll_sum(model, batch) / num_targets
        loss.backward()  # type: ignore[no-untyped-call]
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients(model).values()])


def fused(model: nn.Module) -> nn.Module:
    assert fuse(model.train(), pack=True, longest=LONGEST).num_layers == 2  # type: ignore[arg-type]
    return model


def error_ratio(family: str, seed: int, packing: str) -> float:
    """Of the engine's gradient to that of transformers and PEFT in bfloat16."""
    exact = plain_gradient(family, seed, EXACT)
    ours, theirs = ((found - exact).norm() for found in (engine_gradient(family, seed, packing), plain_gradient(family, seed, HALF)))
    assert theirs < 0.3 * exact.norm()
    return (ours / theirs).item()


@pytest.mark.parametrize("packing", ["bins", "tree"])
@pytest.mark.parametrize("family", DENSE)
def test_the_gradients_error_is_no_larger_than_the_plain_paths(family: str, packing: str) -> None:
    """Measured: 0.77 to 0.99 of it."""
    assert geometric_mean(error_ratio(family, seed, packing) for seed in SEEDS) <= 1.2


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["bins", "tree"])
def test_a_mixtures_gradient_has_no_larger_error_over_many_seeds(packing: str) -> None:
    """In either path a rounding may send a token to another expert, which makes the error of one seed 4 times another's. Measured: 0.93."""
    assert geometric_mean(error_ratio("qwen3_moe", seed, packing) for seed in range(16)) <= 1.2


def losses(model: nn.Module, precision: Precision, packing: str) -> Tensor:
    """Of each row alone."""
    found = []
    with torch.no_grad(), precision.autocast():
        for row in ROWS:
            (batch,) = in_packs([row], packing)
            found.append(nll_sum(model.eval(), batch).item() / batch.num_targets)
    return torch.tensor(found)


def loss_error_ratio(family: str, seeds: Sequence[int]) -> float:
    """Of the engine's losses to those of transformers and PEFT in bfloat16, root mean square over rows."""
    errors: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
    for seed in seeds:
        exact = losses(adapted(base_of(family, seed, EXACT)), EXACT, "off")
        errors["ours"].append(losses(fused(adapted(base_of(family, seed, HALF))), HALF, "bins") - exact)
        errors["theirs"].append(losses(adapted(base_of(family, seed, HALF)), HALF, "off") - exact)
    return rms(errors["ours"]) / rms(errors["theirs"])


@pytest.mark.slow
@pytest.mark.parametrize("family", DENSE)
def test_the_losses_error_is_no_larger_over_many_seeds(family: str) -> None:
    """Measured: 0.84 (Qwen3) to 1.08 (Mistral). Scores rounded before the softmax cost up to 24 %, which the adapters win back."""
    assert loss_error_ratio(family, range(12)) <= 1.2


def rms(errors: list[Tensor]) -> float:
    return torch.cat(errors).square().mean().sqrt().item()


Make = Callable[[nn.Module], nn.Module]
PATHS: dict[str, tuple[Precision, Make, str]] = {
    "float32": (EXACT, lambda model: model, "off"),
    "engine": (HALF, fused, "tree"),
    "PEFT": (HALF, lambda model: model, "off"),
}


def stored(kind: str, seed: int, precision: Precision) -> PreTrainedModel:
    """The base; or one in few bits, and in float32 the numbers that bfloat16 sees of it."""
    base = base_of("qwen3", seed, HALF if kind != "none" else precision)
    if kind == "none":
        return base
    return quantized(base, kind) if precision is HALF else in_numbers(quantized(base, kind)).float()


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_the_first_steps_gain_is_that_of_float32_and_with_pefts_two_roundings_it_is_not(kind: str) -> None:
    """A step at a rate of 1e-4 gains 0.0175 nats; the engine sees 0.018 of it, PEFT 0.003: its updates vanish in a rounded output."""
    before: dict[str, list[Tensor]] = {path: [] for path in PATHS}
    after: dict[str, list[Tensor]] = {path: [] for path in PATHS}
    for seed in range(3):
        for path, (precision, make, packing) in PATHS.items():
            model = make(add_lora(stored(kind, seed, precision), Lora(r=16), seed=1))
            alone = "bins" if packing == "tree" else "off"
            before[path].append(losses(model, precision, alone))
            optimizer = make_optimizer(trained_of(model), Training(learning_rate=1e-4))
            train_step(model.train(), optimizer, in_packs(ROWS, packing), precision=precision, max_norm=1.0, seeds=(0, 1))
            after[path].append(losses(model, precision, alone))
    gain = {path: (torch.cat(before[path]) - torch.cat(after[path])).mean().item() for path in PATHS}
    error = {path: rms([one - other for one, other in zip(after[path], after["float32"], strict=True)]) for path in PATHS}
    floor = rms([one - other for one, other in zip(before["engine"], before["float32"], strict=True)])
    assert error["engine"] <= 2 * floor
    assert gain["engine"] == pytest.approx(gain["float32"], rel=0.25)
    assert gain["PEFT"] < 0.6 * gain["float32"]

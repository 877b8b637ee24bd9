"""Dropout is a function of seed, step, token and module: it has no memory, and does not see how rows are divided."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from luthier.data.pack import row_keys
from luthier.model.dropout import TokenDropout, draw, install
from tests.model.zoo import adapted, tiny

KEYS = torch.from_numpy(row_keys(3, 400))
SOURCES = torch.arange(5, 400, 7)
P = 0.3


def dropped(model: nn.Module) -> dict[str, TokenDropout]:
    return {name: module for name, module in model.named_modules() if isinstance(module, TokenDropout)}


def masks(model: nn.Module, keys_T: Tensor = KEYS, seeds: tuple[int, int] = (0, 1)) -> dict[str, Tensor]:
    """What each module keeps of 400 tokens' 48 features."""
    draw(model, keys_T, SOURCES, seeds)
    return {name: module(torch.ones(len(keys_T), 48)) > 0 for name, module in dropped(model).items()}


def model_with_dropout(p: float = P) -> nn.Module:
    model = adapted(tiny("qwen3"), dropout=p)
    install(model)
    return model.train()


def agreement(one: Tensor, other: Tensor) -> float:
    """1 for equal masks; p² + (1 - p)² = 0.58 for masks that know nothing of each other."""
    return (one == other).float().mean().item()


def test_every_adapted_layer_drops_by_token_and_no_other_way() -> None:
    model = model_with_dropout()
    assert len(dropped(model)) == 2 * 7
    assert not any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())


def test_the_mean_is_kept_and_the_gradient_has_the_mask_of_the_values() -> None:
    model = model_with_dropout()
    draw(model, KEYS, SOURCES, (0, 1))
    module, x = next(iter(dropped(model).values())), torch.randn(400, 48, requires_grad=True)
    y = module(x)
    kept = y != 0
    assert kept.float().mean().item() == pytest.approx(1 - P, abs=0.015)  # 19,200 draws: 4.5 standard deviations
    torch.testing.assert_close(y[kept], x[kept] / (1 - P))
    y.backward(torch.full_like(y, 2.0))
    torch.testing.assert_close(x.grad, kept * 2.0 / (1 - P))


def test_seed_step_token_and_module_each_decide() -> None:
    model = model_with_dropout()
    first = masks(model)
    others = masks(model, seeds=(1, 1)), masks(model, seeds=(0, 2)), masks(model, keys_T=torch.from_numpy(row_keys(4, 400)))
    pairs = [(first[name], other[name]) for other in others for name in first] + list(itertools.combinations(first.values(), 2))
    assert all(agreement(one, other) == pytest.approx(0.58, abs=0.02) for one, other in pairs)
    assert all(torch.equal(first[name], again) for name, again in masks(model).items())
    torch.manual_seed(5)  # no generator has a say
    assert all(torch.equal(first[name], again) for name, again in masks(model_with_dropout()).items())


def test_tokens_and_features_of_one_mask_know_nothing_of_each_other() -> None:
    mask = next(iter(masks(model_with_dropout()).values()))
    assert agreement(mask[1:], mask[:-1]) == pytest.approx(0.58, abs=0.02)
    assert agreement(mask[:, 1:], mask[:, :-1]) == pytest.approx(0.58, abs=0.02)
    assert mask.float().mean(0).std().item() < 0.035 and mask.float().mean(1).std().item() < 0.09  # √(pq/n): 0.023 and 0.066


def test_a_token_keeps_its_mask_wherever_it_stands() -> None:
    model = model_with_dropout()
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    here, there = masks(model), masks(model, keys_T=KEYS[order])
    part = masks(model, keys_T=KEYS[100:170])
    assert all(torch.equal(here[name][order], there[name]) and torch.equal(here[name][100:170], part[name]) for name in here)


def test_evaluation_drops_nothing() -> None:
    x = torch.randn(7, 48)
    assert all(module(x) is x for module in dropped(model_with_dropout().eval()).values())


def test_two_models_draw_apart() -> None:
    one, other = model_with_dropout(), model_with_dropout()
    before = masks(one)
    draw(other, KEYS, SOURCES, (8, 8))
    assert all(torch.equal(module(torch.ones(400, 48)) > 0, before[name]) for name, module in dropped(one).items())


def test_without_dropout_nothing_is_replaced_and_nothing_drawn() -> None:
    for model in (adapted(tiny("qwen3")), tiny("qwen3")):
        install(model)
        assert dropped(model) == {}
        draw(model, KEYS, SOURCES, (0, 1))


def test_a_head_that_sees_the_tokens_before_targets_drops_by_their_keys() -> None:
    model = model_with_dropout()
    whole = masks(model)
    assert all(torch.equal(module(torch.ones(len(SOURCES), 48)) > 0, whole[name][SOURCES]) for name, module in dropped(model).items())


@pytest.mark.parametrize("shape", [(401, 48), (1, 399, 48), (20, 20, 24)])
def test_a_layer_that_sees_other_tokens_still_drops_a_share_and_keeps_the_mean(shape: tuple[int, ...]) -> None:
    model = model_with_dropout()
    draw(model, KEYS, SOURCES, (0, 1))
    y = next(iter(dropped(model).values()))(torch.ones(shape))
    assert y.shape == shape
    assert (y > 0).float().mean().item() == pytest.approx(1 - P, abs=0.02)
    assert y.max().item() == pytest.approx(1 / (1 - P))


def test_a_transposed_input_is_dropped_as_its_copy_is() -> None:
    model = model_with_dropout()
    draw(model, KEYS, SOURCES, (0, 1))
    module, turned = next(iter(dropped(model).values())), torch.randn(1, 48, 400).transpose(1, 2).requires_grad_()
    straight = turned.detach().contiguous().requires_grad_()
    for x in (turned, straight):
        (module(x).sum(-1) * torch.arange(400)).sum().backward()  # whose gradient comes expanded
    torch.testing.assert_close(module(turned), module(straight))
    torch.testing.assert_close(turned.grad, straight.grad)

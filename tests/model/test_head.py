"""The loss at targets in chunks, with its gradient, is the cross entropy of whole logits."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from luthier.model import head
from luthier.model.head import halves, nll
from tests.model.zoo import FAMILIES, FOREIGN, adapted, tiny

N, D, V = 53, 24, 70
Problem = tuple[Tensor, Tensor, Tensor, Tensor]


def problem(dtype: torch.dtype = torch.float32) -> Problem:
    """Hidden states, head, targets, and how many rows want each."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND, weight_VD = (torch.randn(rows, D, generator=generator) for rows in (N, V))
    targets_N, counts_N = (torch.randint(0, most, (N,), generator=generator) for most in (V, 4))
    return hidden_ND.to(dtype).requires_grad_(), weight_VD.to(dtype), targets_N, counts_N


def whole(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, counts_N: Tensor) -> Tensor:
    return (F.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="none") * counts_N).sum()


def nll_sum(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, counts_N: Tensor) -> Tensor:
    return (nll(hidden_ND, weight_VD, targets_N) * counts_N).sum()


@pytest.fixture(params=[1, 20, 10**6])
def rows_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Logits in chunks of so many rows (never fewer than 16)."""
    monkeypatch.setattr(head, "CHUNK_BYTES", request.param * V * 4)
    return int(request.param)


def test_chunks_have_the_loss_and_gradient_of_whole_logits(rows_at_once: int) -> None:
    hidden_ND, *rest = problem()
    expected_ND = hidden_ND.detach().clone().requires_grad_()
    loss, expected = nll_sum(hidden_ND, *rest), whole(expected_ND, *rest)
    (loss * 0.37).backward()
    (expected * 0.37).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (hidden_ND.grad - expected_ND.grad).norm() <= 1e-6 * expected_ND.grad.norm()


def test_logits_never_exist_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    loss_of = head.cross_entropy_

    def watched(logits_NV: Tensor, *rest: Tensor) -> Tensor:
        seen.append(len(logits_NV))
        return loss_of(logits_NV, *rest)

    monkeypatch.setattr(head, "cross_entropy_", watched)
    monkeypatch.setattr(head, "CHUNK_BYTES", 20 * V * 4)
    nll_sum(*problem())
    assert seen == [20, 20, 13]


def test_a_target_of_two_rows_counts_twice_and_one_of_none_not_at_all() -> None:
    hidden_ND, weight_VD, targets_N, _ = problem()
    counts_N = torch.tensor([2, 0] + [1] * (N - 2))
    again = torch.tensor([0, 0, *range(2, N)])
    ones_N = torch.ones(N, dtype=torch.long)
    found = nll_sum(hidden_ND, weight_VD, targets_N, counts_N)
    assert found.item() == pytest.approx(nll_sum(hidden_ND[again], weight_VD, targets_N[again], ones_N).item(), rel=1e-6)
    found.backward()
    assert hidden_ND.grad[1].abs().max() == 0


def test_bfloat16_logits_are_rounded_once_and_summed_in_float32() -> None:
    hidden_ND, *rest = problem(torch.bfloat16)
    exact_ND = hidden_ND.detach().float().requires_grad_()
    weight_VD = rest[0].float()
    exact = whole(exact_ND, weight_VD, *rest[1:])
    loss, plain_ND = nll_sum(hidden_ND, *rest), hidden_ND.detach().clone().requires_grad_()
    plain = (F.cross_entropy((plain_ND @ rest[0].T).float(), rest[1], reduction="none") * rest[2]).sum()
    for one in (loss, plain, exact):
        one.backward()
    assert loss.dtype == torch.float32 and hidden_ND.grad.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    ours, theirs = ((grad.float() - exact_ND.grad).norm().item() for grad in (hidden_ND.grad, plain_ND.grad))
    assert ours <= 1.1 * theirs


def test_evaluation_forms_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_ND, *rest = problem()
    expected = nll_sum(hidden_ND, *rest).item()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the gradient's product was made")

    monkeypatch.setattr(torch, "mm", refuse)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert nll_sum(hidden_ND + 0, *rest).item() == expected


def test_no_targets_are_no_loss_and_no_gradient() -> None:
    hidden_ND, weight_VD, *_ = problem()
    none = torch.empty(0, dtype=torch.long)
    loss = nll_sum(hidden_ND[:0], weight_VD, none, none)
    loss.backward()
    assert loss.item() == 0 and hidden_ND.grad.abs().max() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_known_families_are_cut_before_their_head(family: str) -> None:
    for model in (base := tiny(family), adapted(base)):
        for weight in base.lm_head.parameters():
            weight.requires_grad_(False)
        cut = halves(model)
        assert cut is not None and cut.weight_VD is base.lm_head.weight
        ids = torch.arange(9)[None]
        hidden_1TD = cut.decoder(input_ids=ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(hidden_1TD @ cut.weight_VD.T, model(input_ids=ids).logits)


def trained_head() -> nn.Module:
    return tiny("llama")


def adapted_head() -> nn.Module:
    return get_peft_model(tiny("llama"), LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))


@pytest.mark.parametrize("make", [trained_head, adapted_head, *(lambda family=family: adapted(tiny(family)) for family in FOREIGN)])
def test_a_head_that_is_trained_adapted_or_not_all_of_the_logits_is_left_whole(make: Callable[[], nn.Module]) -> None:
    assert halves(make()) is None

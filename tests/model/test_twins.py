"""The twins are the obvious formulas, their backward functions what autograd makes of these, and dropout's hash is as good as chance."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from luthier.model import twins
from luthier.model.twins import Angles, HeadNorm, Stacked, Visible

FAR = 1 << 40


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.detach().double(), rtol=1e-10, atol=1e-10)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def test_rms_norm_and_its_gradient() -> None:
    x, weight, dy, residual = values(5, 12), torch.rand(12), values(5, 12, seed=1).detach(), values(5, 12, seed=2).detach()
    y = rms_norm(x, weight, 0.01)
    y.backward(dy)
    assert x.grad is not None
    out = torch.empty_like(x)
    rstd = twins.rms_norm(x.detach(), weight, 0.01, out)
    close(out, y)
    close(twins.rms_norm_backward(dy, x.detach(), weight, rstd, None), x.grad)
    close(twins.rms_norm_backward(dy, x.detach(), weight, rstd, residual), x.grad + residual)


@pytest.mark.parametrize("normed", [False, True])
def test_rotary_heads_and_their_gradient(normed: bool) -> None:
    num_tokens, num_heads, d = 6, 3, 8
    x = values(num_tokens, num_heads * d)
    angle = 0.1 * torch.arange(num_tokens)[:, None] * torch.arange(1, d // 2 + 1)
    norm, angles = HeadNorm(weight_d=torch.rand(d), eps=0.01), Angles(cos_Td2=angle.cos(), sin_Td2=angle.sin())
    heads = x.view(num_tokens, num_heads, d)
    heads = rms_norm(heads, norm.weight_d, norm.eps) if normed else heads
    full_cos, full_sin = (torch.cat((each, each), 1)[:, None] for each in (angles.cos_Td2, angles.sin_Td2))
    rotated_half = torch.cat((-heads[..., d // 2 :], heads[..., : d // 2]), -1)
    expected = (heads * full_cos + rotated_half * full_sin).transpose(0, 1)  # as transformers' apply_rotary_pos_emb has it
    # Two nodes: tokens 0 … 3 and an empty place, tokens 4 and 5
    places = [*((token, 0, token, 5) for token in range(4)), (-1, 0, 4, 5), *((token, 5, token - 4, 2) for token in (4, 5))]
    out, gradient = (
        Stacked(flat_PC=flat, num_heads=num_heads, places_P4=torch.tensor(places)) for flat in (x.new_ones(7, 24), values(7, 24))
    )
    first, second = (gradient.flat_PC.detach()[part].view(num_heads, -1, d) for part in (slice(5), slice(5, 7)))
    expected.backward(torch.cat((first[:, :4], second), 1))
    assert x.grad is not None
    twins.rotate(x.detach(), norm if normed else None, angles, out)
    close(out.flat_PC[:5].view(num_heads, 5, d)[:, :4], expected[:, :4])
    assert not out.flat_PC[:5].view(num_heads, 5, d)[:, 4].any()
    close(out.flat_PC[5:].view(num_heads, 2, d), expected[:, 4:])
    found = torch.empty_like(x.detach())
    twins.rotate_backward(gradient, x.detach(), norm if normed else None, angles, found)
    close(found, x.grad)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_the_gate_and_its_gradient(activation: twins.Activation) -> None:
    gate_up, dh = values(4, 20), values(4, 10, seed=1).detach()
    gate, up = gate_up.chunk(2, 1)
    h = (functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")) * up
    h.backward(dh)
    assert gate_up.grad is not None
    out, hidden, found = torch.empty_like(dh), torch.empty_like(dh), torch.empty_like(gate_up.detach())
    twins.gate(gate_up.detach(), out, activation)
    twins.gate_backward(dh, gate_up.detach(), found, hidden, activation)
    close(out, h)
    close(hidden, h)
    close(found, gate_up.grad)


def test_attention_in_parts_and_its_gradient() -> None:
    """Two heads that share keys; queries see all of an earlier block of keys and, causally, their own: as one masked softmax."""
    num_heads, num_queries, num_before, d, scale = 2, 5, 7, 4, 0.5
    q, d_out = values(num_heads, num_queries, d), values(num_heads, num_queries, d, seed=1).detach()
    k, v = values(num_before + num_queries, d), values(num_before + num_queries, d, seed=1)
    mask = torch.ones(num_queries, len(k), dtype=torch.bool).tril(num_before)
    scores = (q @ k.T * scale).masked_fill(~mask, -math.inf)
    expected, expected_lse = scores.softmax(-1) @ v, scores.logsumexp(-1)
    expected.backward(d_out)

    causal = Visible(queries=num_queries, keys=num_queries, low=-FAR, high=0)
    full = Visible(queries=num_queries, keys=num_before, low=-FAR, high=FAR)
    blocks = ((slice(num_before, None), causal), (slice(0, num_before), full))
    with torch.no_grad():
        out, lse = torch.full_like(q, math.nan), torch.full_like(q[..., 0], -math.inf)
        for at, visible in blocks:
            p = (q @ k[at].T).view(1, num_heads * num_queries, -1)
            part_lse = twins.softmax_(p, scale, visible, num_heads)
            twins.merge_(out, lse, p.view(num_heads, num_queries, -1) @ v[at], part_lse)
        close(out, expected)
        close(lse, expected_lse)

        by_tokens = (heads.transpose(0, 1).reshape(num_queries, -1) for heads in (d_out, out))
        delta, (dq, dk, dv) = twins.head_dots(*by_tokens, num_heads), map(torch.zeros_like, (q, k, v))
        for at, visible in blocks:
            p, ds = (each.view(1, num_heads * num_queries, -1) for each in (q @ k[at].T, d_out @ v[at].T))
            twins.softmax_backward_(p, ds, (lse, delta), scale, visible)
            dq += (ds @ k[at]).view_as(q)
            dk[at] += ds[0].T @ q.view(-1, d)
            dv[at] += p[0].T @ d_out.view(-1, d)
    for found, leaf in ((dq, q), (dk, k), (dv, v)):
        assert leaf.grad is not None
        close(found, leaf.grad)


def test_a_query_that_sees_nothing_has_no_probabilities() -> None:
    scores = torch.randn(1, 4, 6)
    lse = twins.softmax_(scores, 1.0, Visible(queries=3, keys=5, low=-FAR, high=-2), 1)
    assert lse[0].isinf().tolist() == [True, True, False, True]
    assert scores[0].count_nonzero(1).tolist() == [0, 0, 1, 0]


def test_cross_entropy_and_its_gradient() -> None:
    logits, targets, counts = values(6, 11), torch.tensor([0, 10, 3, 3, 7, 1]), torch.tensor([1, 2, 1, 5, 1, 1])
    expected = functional.cross_entropy(logits, targets, reduction="none") * counts
    expected.sum().backward()
    assert logits.grad is not None
    found = logits.detach().clone()
    close(twins.cross_entropy_(found, targets, counts), expected)
    close(found, logits.grad)


def masks(salt: int, p: float = 0.5, num_tokens: int = 4096, width: int = 512) -> Tensor:
    """1 where kept. Keys in a row and small salts: worse than the hashes that they should be."""
    out = torch.empty(num_tokens, width)
    twins.drop(torch.ones(num_tokens, width), torch.arange(num_tokens), salt, p, out)
    return (out > 0).double()


def correlation(a: Tensor, b: Tensor) -> float:
    """In standard deviations: of independent masks it is normal with mean 0 and deviation 1."""
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) * math.sqrt(a.numel())


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_kept_share_is_one_minus_p_and_keeps_the_mean(p: float) -> None:
    kept = masks(1, p)
    assert abs(kept.mean() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / kept.numel())
    assert twins.drop_scale(p) == pytest.approx(1 / (1 - p), rel=1e-9)


def test_p_zero_drops_nothing() -> None:
    out = torch.empty(2, 3)
    twins.drop(torch.full((2, 3), 1.7), torch.tensor([1, 2]), 3, 0.0, out)
    assert torch.equal(out, torch.full((2, 3), 1.7))


def test_masks_of_neighbouring_columns_tokens_and_salts_are_independent() -> None:
    kept = masks(1)
    for distance in (1, 2, 3, 4, 16, 64, 256):
        assert abs(correlation(kept[:, distance:], kept[:, :-distance])) < 4
        assert abs(correlation(kept[distance:], kept[:-distance])) < 4
        assert abs(correlation(kept, masks(1 + distance))) < 4
    assert abs(correlation(kept, masks(1 << 32))) < 4
    assert abs(correlation(kept[1:, :-1], kept[:-1, 1:])) < 4  # a shifted copy


@pytest.mark.parametrize("along", [0, 1])
def test_eight_neighbours_take_all_256_patterns_equally_often(along: int) -> None:
    kept = masks(2).T if along else masks(2)
    bits = kept.reshape(-1, 8).long()
    counts = torch.bincount((bits << torch.arange(8)).sum(1), minlength=256)
    chi_square = float(((counts - bits.shape[0] / 256) ** 2 / (bits.shape[0] / 256)).sum())
    assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)


@pytest.mark.parametrize("axis", [0, 1])
def test_no_token_and_no_column_is_dropped_more_than_others(axis: int) -> None:
    sums, num = masks(3, 0.1).sum(axis), (4096, 512)[axis]
    chi_square, freedom = float(((sums - 0.9 * num) ** 2).sum() / (0.09 * num)), len(sums)
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_a_mask_follows_from_the_token_and_not_from_where_it_stands() -> None:
    whole, part, keys = torch.empty(9, 33), torch.empty(4, 33), torch.randint(-(2**63), 2**63 - 1, (9,))
    twins.drop(torch.ones(9, 33), keys, 5, 0.3, whole)
    twins.drop(torch.ones(4, 33), keys[2:6], 5, 0.3, part)
    assert torch.equal(whole[2:6], part)


def test_columns_of_a_wider_matrix_are_dropped_as_in_the_whole() -> None:
    whole, part, keys = torch.empty(9, 33), torch.zeros(9, 12), torch.randint(-(2**63), 2**63 - 1, (9,))
    twins.drop(torch.ones(9, 33), keys, 5, 0.3, whole)
    twins.drop_add_(part, torch.ones(9, 12), keys, 5, 0.3, 20)
    assert torch.equal(whole[:, 20:32], part)

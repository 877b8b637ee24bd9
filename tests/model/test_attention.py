"""Attention by blocks of a tree is softmax attention under the tree's dense mask, forward and backward."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface

from luthier.data.pack import bins, trees
from luthier.model import attention
from luthier.model.attention import NAME, Tree, Unfusable
from tests.model.zoo import forget_blocks, row, small_blocks

Qkv = tuple[Tensor, Tensor, Tensor]

SEGMENTS = st.sampled_from([[1], [2, 3], [1] * 7, [2] * 16, [3] * 17, [4, 1] * 12, list(range(33))])


@st.composite
def forests(draw: st.DrawFn) -> Tree:
    """Of up to 7 rows, each beginning as an earlier one does or anew, as a tree or end to end."""
    lines: list[list[int]] = [[]]
    for _ in range(draw(st.integers(1, 7))):
        parent = draw(st.sampled_from(lines))
        kept = parent[: draw(st.sampled_from([0, len(parent), len(parent) // 2]))]
        lines.append([*kept, *itertools.chain(*draw(st.lists(SEGMENTS, min_size=not kept, max_size=3)))])
    rows = [row(ids, lambda index: True) for ids in lines[1:]]
    return Tree.of(draw(st.sampled_from([bins, trees]))(rows, range(len(rows)), 10**6)[0])


WINDOWS = st.sampled_from([None, 1, 2, 5, 16, 33, 1000])


def tree_of(*lines: Sequence[int]) -> Tree:
    rows = [row(ids, lambda index: True) for ids in lines]
    return Tree.of(trees(rows, range(len(rows)), 10**6)[0])


def random_qkv(tree: Tree, heads: tuple[int, int], dtype: torch.dtype, size: int = 8) -> Qkv:
    generator = torch.Generator().manual_seed(tree.num_tokens)
    shapes = [(1, num_heads, tree.num_tokens, size) for num_heads in (heads[0], heads[1], heads[1])]
    numbers = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    q, k, v = ((1.4 * x).to(dtype).requires_grad_() for x in numbers)  # scores of ±15: some rows attend to one key, some to many
    return q, k, v


def dense(qkv: Qkv, tree: Tree, window: int | None, scale: float) -> Tensor:
    q, k, v = qkv
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.mT * scale).masked_fill(~tree.mask(torch.device("cpu"), window), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def blocked(qkv: Qkv, tree: Tree, window: int | None, scale: float, **options: Any) -> Tensor:
    """As transformers' models call it."""
    q, k, v = qkv
    out, _ = AttentionInterface()[NAME](torch.nn.Identity(), q, k, v, None, tree=tree, scaling=scale, sliding_window=window, **options)
    return out


def assert_same(tree: Tree, heads: tuple[int, int], window: int | None, tolerance: float = 5e-6) -> None:
    """Outputs and all three gradients, in float32, whose scores of up to 15 are known to 1e-6.

    A query that sees one key has a gradient of zero, the difference of equal numbers: errors of q's and k's are relative to v's gradient.
    """
    found, expected = random_qkv(tree, heads, torch.float32), random_qkv(tree, heads, torch.float64)
    weights = torch.randn(1, tree.num_tokens, heads[0], 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out, reference = blocked(found, tree, window, 0.6), dense(expected, tree, window, 0.6)
    (out * weights.float()).sum().backward()
    (reference * weights).sum().backward()
    assert (out.double() - reference).norm() <= tolerance * reference.norm()
    scale = expected[2].grad.norm()
    for one, other in zip(found, expected, strict=True):
        assert (one.grad.double() - other.grad).norm() <= tolerance * scale


@small_blocks()
@settings(deadline=None, max_examples=60)
@given(tree=forests(), window=WINDOWS)
def test_blocks_hold_each_pair_of_the_mask_once_and_begin_with_each_querys_own(tree: Tree, window: int | None) -> None:
    seen_TT = torch.zeros(tree.num_tokens, tree.num_tokens, dtype=torch.long)
    own_T = torch.zeros(tree.num_tokens, dtype=torch.long)
    for block in tree.blocks(window):
        first, visible = tree.nodes[block.node].start, block.visible
        queries, keys = slice(block.start, block.stop), slice(first, first + block.num_keys)
        assert (visible.queries, visible.keys) == (block.stop - block.start, block.num_keys)
        assert visible.queries <= 20
        query, key = torch.arange(visible.queries)[:, None], torch.arange(visible.keys)
        seen_TT[queries, keys] += (visible.low + query <= key) & (key <= visible.high + query)
        own_T[queries] += block.own
        assert torch.all(own_T[queries] == 1)
    assert torch.equal(seen_TT, tree.mask(torch.device("cpu"), window).long())
    assert torch.all(own_T == 1)


@settings(deadline=None, max_examples=60)
@given(lines=st.lists(st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda parts: [*itertools.chain(*parts)]), min_size=1), window=WINDOWS)
def test_a_token_sees_the_last_of_its_own_rows_tokens_and_nothing_else(lines: list[list[int]], window: int | None) -> None:
    rows = [row(ids, lambda index: True) for ids in lines]
    pack = trees(rows, range(len(rows)), 10**6)[0]
    beginnings = {tuple(ids[:stop]) for ids in lines for stop in range(1, len(ids) + 1)}
    seen_TT = Tree.of(pack).mask(torch.device("cpu"), window).numpy()
    for place, position in enumerate(pack.positions_T):
        seen = pack.ids_T[seen_TT[place]].tolist()
        assert len(seen) == min(position + 1, window or 10**6)
        assert any(list(ids[-len(seen) :]) == seen for ids in beginnings if len(ids) == position + 1)


@small_blocks()
@settings(deadline=None, max_examples=120)
@given(tree=forests(), window=WINDOWS, heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]))
def test_blocks_of_a_few_tokens_are_dense_attention(tree: Tree, window: int | None, heads: tuple[int, int]) -> None:
    assert_same(tree, heads, window)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 127, 128, 255, 256, 257, 383, 384, 385, 700])
def test_rows_about_as_long_as_a_block_are_dense_attention(length: int) -> None:
    tree = tree_of([1] * length, [2] * 40)
    assert_same(tree, (2, 1), None)
    assert_same(tree, (2, 1), 100)


@pytest.mark.parametrize("num_branches", [2, 6])
def test_more_descendants_than_a_block_holds_are_dense_attention(num_branches: int) -> None:
    """A prompt of 300 tokens with branches of 300: up to 1,800 queries of one ancestor."""
    tree = tree_of(*([1] * 300 + [branch] * (298 + branch) for branch in range(2, 2 + num_branches)))
    assert_same(tree, (2, 1), None)
    assert_same(tree, (2, 1), 450)


def test_bfloat16_is_as_near_as_eager_attentions() -> None:
    """Which rounds scores and probabilities too; sdpa's float32 scores are 1.5 times as near, at a tenth of the speed on a CPU."""
    tree = tree_of(*([1] * 60 + [branch] * (30 + 7 * branch) for branch in range(2, 6)), [9] * 50)
    exact = random_qkv(tree, (4, 2), torch.float64)
    weights = torch.randn(1, tree.num_tokens, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (reference := dense(exact, tree, None, 0.35)).backward(weights)
    errors = {}
    for attend in (blocked, dense):
        qkv = random_qkv(tree, (4, 2), torch.bfloat16)
        (out := attend(qkv, tree, None, 0.35)).backward(weights.to(torch.bfloat16))
        pairs = [(out, reference), *((one.grad, other.grad) for one, other in zip(qkv, exact, strict=True))]
        errors[attend] = [((one.double() - other).norm() / other.norm()).item() for one, other in pairs]
    assert all(ours <= 1.1 * theirs for ours, theirs in zip(errors[blocked], errors[dense], strict=True)), errors.values()


def test_a_row_is_bit_for_bit_what_it_is_beside_other_rows() -> None:
    """Rows of other tokens, but of the same lengths, change nothing at all."""
    tree = tree_of([1] * 40, [2] * 70, [3] * 33)
    q, k, v = (x.detach() for x in random_qkv(tree, (4, 2), torch.float32))
    out = blocked((q, k, v), tree, None, 0.35)
    moved = [x.clone() for x in (q, k, v)]
    for x in moved:
        x[:, :, 40:110] += 7
    other = blocked((moved[0], moved[1], moved[2]), tree, None, 0.35)
    assert torch.equal(out[:, :40], other[:, :40]) and torch.equal(out[:, 110:], other[:, 110:])
    assert not torch.equal(out[:, 40:110], other[:, 40:110])


def test_what_blocks_do_not_compute_is_refused() -> None:
    tree = tree_of([1, 2, 3])
    qkv = random_qkv(tree, (2, 1), torch.float32)
    with pytest.raises(Unfusable, match="softcap"):
        blocked(qkv, tree, None, 0.35, softcap=30.0)
    with pytest.raises(Unfusable, match="s_aux"):
        blocked(qkv, tree, None, 0.35, s_aux=torch.zeros(2))


def test_without_a_pack_it_is_sdpa() -> None:
    class Layer(torch.nn.Module):
        is_causal = True
        num_key_value_groups = 2

    q, k, v = random_qkv(tree_of([1] * 9), (2, 1), torch.float32)
    out, _ = AttentionInterface()[NAME](Layer(), q, k, v, None, scaling=0.6)
    torch.testing.assert_close(out, dense((q, k, v), tree_of([1] * 9), None, 0.6).float())


@settings(deadline=None, max_examples=25)
@given(tree=forests())
def test_flexattentions_mask_is_the_trees(tree: Tree) -> None:
    forget_blocks()
    mask = attention._block_mask(tree, torch.device("cpu"))
    places = torch.arange(tree.num_tokens)
    zero = torch.zeros((), dtype=torch.long)
    seen_TT = mask.mask_mod(zero, zero, places[:, None], places[None])
    expected_TT = tree.mask(torch.device("cpu"))
    assert torch.equal(seen_TT, expected_TT)
    size = mask.BLOCK_SIZE[0]
    for query, key in itertools.product(range(0, tree.num_tokens, size), repeat=2):  # what is skipped holds nothing that is seen
        assert mask.to_dense()[0, 0, query // size, key // size] or not expected_TT[query : query + size, key : key + size].any()
    assert np.array_equal(mask.shape[-2:], (tree.num_tokens, tree.num_tokens))

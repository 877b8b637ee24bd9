"""Attention inside a pack: every token sees its row from the start to itself, and no other row.

H = query heads, K = key and value heads, T = tokens of the pack, d = head size, M = queries of a block, L = keys of a block.

A pack is a forest of nodes (`luthier.data.pack`). Its attention is computed as blocks of (queries × keys): each node with itself,
causally, and all its descendants with it, in full. A query that meets several blocks has its partial results merged by their
log-sum-exp; with the merged output and log-sum-exp each block's ordinary backward is exact (Liu et al. 2023, "Ring Attention",
arXiv 2310.01889; Dao et al. 2022, "FlashAttention", arXiv 2205.14135, for the backward).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from luthier.data.pack import Node, Pack
from luthier.model.pointwise import Stacked, Visible, head_dots, merge_, rotate, rotate_backward, softmax_, softmax_backward_

NAME = "luthier"
"""What the attention is called in transformers' AttentionInterface."""
OWN, ANCESTOR = 256, 1024
"""Queries of a block at most: of a node with itself, where half of a square is wasted, and with an ancestor."""
ROUND = 32
"""Sizes of blocks are rounded up to a multiple: oneDNN takes up to 1 ms to set up a product of an unseen shape, and lengths are many."""
FAR = 1 << 40


class Unfusable(Exception):
    """A model, or a layer of it, that the functions here do not compute; its text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Queries [start, stop) of the stream times the first `num_keys` keys of a node; query i sees key j where low + i ≤ j ≤ high + i."""

    node: int
    start: int
    stop: int
    num_keys: int
    low: int
    high: int
    own: bool
    """Of a node with itself: every query has exactly one such block, and it comes first."""
    parts: tuple[tuple[int, slice], ...]
    """Which nodes hold the queries, and where in their places; an own block's rounded up."""

    @property
    def visible(self) -> Visible:
        """As the kernels want it."""
        return Visible(queries=self.stop - self.start, keys=self.num_keys, low=self.low, high=self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Which token of a pack sees which: its nodes, parents before children, and each node's first position in its rows."""

    nodes: tuple[Node, ...]
    depths: tuple[int, ...]
    num_tokens: int

    @classmethod
    def of(cls, pack: Pack) -> "Tree":
        """That of a pack."""
        depths = tuple(pack.positions_T[[node.start for node in pack.nodes]].tolist())
        return cls(nodes=pack.nodes, depths=depths, num_tokens=len(pack.ids_T))

    def blocks(self, window: int | None = None) -> tuple[Block, ...]:
        """The blocks of a layer; with a sliding window, a token sees itself and the `window` - 1 tokens before it."""
        return _blocks(self, window if window and window < self.longest else FAR)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(depth + node.stop - node.start for node, depth in zip(self.nodes, self.depths, strict=True))

    def mask(self, device: torch.device, window: int | None = None) -> Tensor:
        """The same as one dense mask [T, T], true where the query (row) sees the key (column): the plain twin."""
        seen_TT = torch.zeros(self.num_tokens, self.num_tokens, dtype=torch.bool, device=device)
        for node in self.nodes:
            seen_TT[node.start : node.end, node.start : node.stop] = True
        positions_T = self.positions(device)
        distance_TT = positions_T[:, None] - positions_T[None]
        return seen_TT & (distance_TT >= 0) & (distance_TT < (window or FAR))

    def positions(self, device: torch.device) -> Tensor:
        """Each token's position in its rows [T]."""
        runs = [torch.arange(depth, depth + node.stop - node.start) for node, depth in zip(self.nodes, self.depths, strict=True)]
        return torch.cat(runs).to(device)


def arguments(tree: Tree, device: torch.device) -> dict[str, Any]:
    """What the model's forward is given for a pack. A mask of four dimensions goes through transformers untouched, and is not looked at."""
    positions = {"position_ids": tree.positions(device)[None]}
    if device.type == "cpu":
        return {**positions, "tree": tree, "attention_mask": torch.zeros(1, 1, 1, 1)}
    return {**positions, "attention_mask": _block_mask(tree, device)}


def stacked(tree: Tree, num_heads: int, width_C: int, like: Tensor) -> Stacked:
    """New memory for heads by node, each node's places rounded up."""
    places_P4 = _places(tree)
    return Stacked(flat_PC=like.new_empty(len(places_P4), width_C), num_heads=num_heads, places_P4=places_P4)


def by_node(tree: Tree, tokens_TC: Tensor, num_heads: int) -> Stacked:
    """Rows by token as heads by node."""
    out = stacked(tree, num_heads, tokens_TC.shape[1], tokens_TC)
    rotate(tokens_TC, None, None, out)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Queries, keys and values of a pack, or their gradients, by node."""

    tree: Tree
    queries: Stacked
    keys: Stacked
    values: Stacked


def attend(heads: Heads, blocks: Sequence[Block], scale: float) -> tuple[Tensor, Tensor]:
    """Output by tokens [T, H·d] and log-sum-exp [H, T]."""
    tree, num_heads = heads.tree, heads.queries.num_heads
    queries, keys, values = (_chunks(tree, each) for each in (heads.queries, heads.keys, heads.values))
    out_TC = heads.queries.flat_PC.new_empty(tree.num_tokens, heads.queries.flat_PC.shape[1])
    lse_HT = out_TC.new_empty(num_heads, tree.num_tokens, dtype=torch.float32)
    for block in blocks:
        keys_KLd, values_KLd = _first(keys, block), _first(values, block)
        scores_KML = torch.bmm(_queries(queries, block, len(keys_KLd)), keys_KLd.mT)
        part_lse_HM = softmax_(scores_KML, scale, block.visible, num_heads)
        part_HMd = torch.bmm(scores_KML, values_KLd).view(num_heads, -1, values_KLd.shape[2])
        at, some = slice(block.start, block.stop), slice(block.stop - block.start)
        target_HMd, target_lse_HM = by_heads(out_TC[at], num_heads), lse_HT[:, at]
        if block.own:
            target_HMd.copy_(part_HMd[:, some])
            target_lse_HM.copy_(part_lse_HM[:, some])
        else:
            merge_(target_HMd, target_lse_HM, part_HMd[:, some], part_lse_HM[:, some])
    return out_TC, lse_HT


def attend_backward(grad_TC: Tensor, heads: Heads, forward: tuple[Tensor, Tensor], blocks: Sequence[Block], scale: float) -> Heads:
    """The gradients of queries, keys and values, from that of the output and what `attend` returned."""
    (out_TC, lse_HT), tree, num_heads = forward, heads.tree, heads.queries.num_heads
    grads = _chunks(tree, by_node(tree, grad_TC, num_heads))
    delta_HT = head_dots(grad_TC, out_TC, num_heads)
    queries, keys, values = (_chunks(tree, each) for each in (heads.queries, heads.keys, heads.values))
    found = Heads(tree=tree, queries=_zeros(heads.queries), keys=_zeros(heads.keys), values=_zeros(heads.values))
    d_queries, d_keys, d_values = (_chunks(tree, each) for each in (found.queries, found.keys, found.values))
    for block in blocks:
        keys_KLd, values_KLd = _first(keys, block), _first(values, block)
        q_KMd, g_KMd = (_queries(chunks, block, len(keys_KLd)) for chunks in (queries, grads))
        scores_KML, d_scores_KML = torch.bmm(q_KMd, keys_KLd.mT), torch.bmm(g_KMd, values_KLd.mT)
        at = slice(block.start, block.stop)
        softmax_backward_(scores_KML, d_scores_KML, (lse_HT[:, at], delta_HT[:, at]), scale, block.visible)
        _add_queries(d_queries, block, torch.bmm(d_scores_KML, keys_KLd))
        _first(d_keys, block).baddbmm_(d_scores_KML.mT, q_KMd)
        _first(d_values, block).baddbmm_(scores_KML.mT, g_KMd)
    return found


def by_heads(tokens_TC: Tensor, num_heads: int) -> Tensor:
    """A view [H, T, d] of [T, H·d]."""
    return tokens_TC.view(len(tokens_TC), num_heads, -1).transpose(0, 1)


class _TreeAttention(torch.autograd.Function):
    """Attention over heads [·, T, d] as transformers' models have them."""

    @staticmethod
    def forward(ctx: Any, q_HTd: Tensor, k_KTd: Tensor, v_KTd: Tensor, tree: Tree, options: tuple[float, int | None]) -> Tensor:
        ctx.tree, (ctx.scale, window) = tree, options
        ctx.blocks = tree.blocks(window)
        out_TC, lse_HT = attend(_heads(tree, q_HTd, k_KTd, v_KTd), ctx.blocks, ctx.scale)
        ctx.save_for_backward(q_HTd, k_KTd, v_KTd, out_TC, lse_HT)
        return out_TC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TC: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out_TC, lse_HT = ctx.saved_tensors
        grads = attend_backward(grad_TC.contiguous(), _heads(ctx.tree, *inputs), (out_TC, lse_HT), ctx.blocks, ctx.scale)
        d_inputs = []
        for x_HTd, d_x in zip(inputs, (grads.queries, grads.keys, grads.values), strict=True):
            d_x_TC = grad_TC.new_empty(len(grad_TC), d_x.flat_PC.shape[1])
            rotate_backward(d_x, d_x_TC, None, None, d_x_TC)
            d_inputs.append(by_heads(d_x_TC, len(x_HTd)))
        return (*d_inputs, None, None)


def _heads(tree: Tree, *inputs: Tensor) -> Heads:
    queries, keys, values = (by_node(tree, x_HTd.transpose(0, 1).flatten(1), len(x_HTd)) for x_HTd in inputs)
    return Heads(tree=tree, queries=queries, keys=keys, values=values)


def _interface(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, tree: Tree | None = None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers' models call: [1, heads, T, d] in, [1, T, heads, d] out. Without a pack, and so in generation, it is sdpa."""
    if isinstance(attention_mask, BlockMask):
        out_1THd, _ = flex_attention_forward(module, query, key, value, attention_mask, **options)
        return out_1THd, None
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    unknown = [name for name in ("softcap", "s_aux") if options.get(name) is not None]
    if unknown or options.get("dropout"):
        raise Unfusable(f"attention with {', '.join(unknown or ['dropout'])}")
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    with torch.autocast(query.device.type, enabled=False):  # which leaves v in its type, and q and k in that of the rotary angles
        q_HTd, k_KTd = query[0].to(value.dtype), key[0].to(value.dtype)
        out_TC = _TreeAttention.apply(q_HTd, k_KTd, value[0], tree, (scale, options.get("sliding_window")))  # type: ignore[no-untyped-call]
    return out_TC.view(1, len(out_TC), query.shape[1], -1), None


AttentionInterface.register(NAME, _interface)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _block_mask(tree: Tree, device: torch.device) -> BlockMask:
    """The same for FlexAttention: in depth-first order a key is seen by what comes after it until its node's end."""
    ends_T = torch.empty(tree.num_tokens, dtype=torch.int32)
    for node in tree.nodes:
        ends_T[node.start : node.stop] = node.end
    ends_T = ends_T.to(device)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends_T[key])

    return create_block_mask(seen, None, None, tree.num_tokens, tree.num_tokens, device=device, _compile=device.type == "cuda")


@lru_cache(maxsize=64)  # all layers of a micro batch ask for the same
def _blocks(tree: Tree, window: int) -> tuple[Block, ...]:
    own, others = [], []
    for index, (node, depth) in enumerate(zip(tree.nodes, tree.depths, strict=True)):
        num_tokens = node.stop - node.start
        for start, stop in _divided(0, num_tokens, OWN):
            span, low = (node.start + start, node.start + stop), start - window + 1
            held = ((index, slice(start, _rounded(stop))),)
            own.append(Block(node=index, start=span[0], stop=span[1], num_keys=stop, low=low, high=start, own=True, parts=held))
        for begin, end, apart in _descendants(tree, index, depth, window):
            for start, stop in _divided(begin, end, ANCESTOR):
                low = apart + start - begin - window + 1
                if low < num_tokens:
                    at, keys = _between(tree, start, stop), num_tokens
                    others.append(Block(node=index, start=start, stop=stop, num_keys=keys, low=low, high=FAR, own=False, parts=at))
    return (*own, *others)


def _descendants(tree: Tree, index: int, depth: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Runs of tokens below a node, and how many positions each begins after the node does; one by one where a window cuts them."""
    node = tree.nodes[index]
    if node.end == node.stop:
        return
    if window >= tree.longest:
        yield node.stop, node.end, 0
        return
    for below, below_depth in zip(tree.nodes[index + 1 :], tree.depths[index + 1 :], strict=True):
        if below.start >= node.end:
            return
        yield below.start, below.stop, below_depth - depth


def _divided(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """[start, stop) in equal parts of about `most`, each but the last a multiple of ROUND."""
    size = _rounded(-(-(stop - start) // max(1, round((stop - start) / most))))
    for begin in range(start, stop, size):
        yield begin, min(begin + size, stop)


@lru_cache(maxsize=16)
def _places(tree: Tree) -> Tensor:
    """See Stacked."""
    parts, first = [], 0
    for node in tree.nodes:
        num_tokens, size = node.stop - node.start, _rounded(node.stop - node.start)
        part_S4 = torch.full((size, 4), -1)
        part_S4[:num_tokens, 0] = torch.arange(node.start, node.stop)
        part_S4[:, 1], part_S4[:, 2], part_S4[:, 3] = first, torch.arange(size), size
        parts.append(part_S4)
        first += size
    return torch.cat(parts)


def _chunks(tree: Tree, heads: Stacked) -> list[Tensor]:
    """Each node's heads [H, places, d]: views."""
    parts = torch.split(heads.flat_PC, [_rounded(node.stop - node.start) for node in tree.nodes])
    return [part.view(heads.num_heads, len(part), -1) for part in parts]


def _zeros(like: Stacked) -> Stacked:
    return replace(like, flat_PC=torch.zeros_like(like.flat_PC))


def _first(chunks: Sequence[Tensor], block: Block) -> Tensor:
    """The block's keys (or values, or their gradients), rounded up: a view."""
    return chunks[block.node][:, : _rounded(block.num_keys)]


def _queries(chunks: Sequence[Tensor], block: Block, num_groups: int) -> Tensor:
    """The block's queries [K, H/K·M, d], those of heads that share keys one below the other; M is rounded up."""
    num_heads, _, size = chunks[0].shape
    parts = [chunks[node][:, at] for node, at in block.parts]
    if block.own:
        return parts[0].reshape(num_groups, -1, size)
    surplus = _rounded(block.stop - block.start) - (block.stop - block.start)
    return torch.cat([*parts, parts[0].new_zeros(num_heads, surplus, size)], dim=1).view(num_groups, -1, size)


def _add_queries(chunks: Sequence[Tensor], block: Block, part_KMd: Tensor) -> None:
    """Add what a block found for its queries to where they lie."""
    part_HMd = part_KMd.view(len(chunks[0]), -1, part_KMd.shape[2])
    start = 0
    for node, at in block.parts:
        num_queries = at.stop - at.start
        chunks[node][:, at] += part_HMd[:, start : start + num_queries]
        start += num_queries


def _between(tree: Tree, start: int, stop: int) -> tuple[tuple[int, slice], ...]:
    """The nodes that hold the tokens [start, stop) of the stream, and where."""
    return tuple(
        (index, slice(max(0, start - node.start), min(stop, node.stop) - node.start))
        for index, node in enumerate(tree.nodes)
        if node.start < stop and start < node.stop
    )


def _rounded(size: int) -> int:
    return -(-size // ROUND) * ROUND

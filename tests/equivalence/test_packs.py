"""Packs, trees, chunks, fused functions and recomputation, each alone and all together, equal the padded plain computation."""

import functools
import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from luthier.core.compiled import Compiled
from luthier.data.pack import Pack, bins, trees
from luthier.data.store import TokenRow
from luthier.model import attention, head, pointwise
from luthier.model.adapt import add_lora
from luthier.model.fuse import fuse
from luthier.model.place import trained_of
from luthier.recipe.schema import Lora, Training
from luthier.train.batch import collate, of_pack
from luthier.train.optim import make_optimizer
from luthier.train.precision import Precision
from luthier.train.step import train_step
from tests.model.zoo import (
    CPU,
    FAMILIES,
    LONGEST,
    VOCABULARY,
    adapted,
    assert_plain,
    by_peft,
    engine_loss,
    gradients,
    in_packs,
    plain_loss,
    row,
    shared_rows,
    small_blocks,
    tiny,
)
from tests.train.workshop import step_gradients

WAYS: dict[str, tuple[str, set[str]]] = {
    "head": ("off", {"chunks"}),
    "checkpointing": ("off", {"checkpointing"}),
    "bins": ("bins", {"attention"}),
    "tree": ("tree", {"attention"}),
    "fused bins": ("bins", {"fused"}),
    "fused tree": ("tree", {"fused"}),
    "fused tree by the twins": ("tree", {"fused", "twins"}),
    "all": ("tree", {"fused", "checkpointing", "chunks", "blocks"}),
    "all by the twins": ("tree", {"fused", "checkpointing", "chunks", "blocks", "twins"}),
}
"""How rows stand, and what is used besides."""


@functools.cache
def plain(family: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of all rows, padded, by transformers with sdpa and PEFT."""
    model = by_peft(adapted(tiny(family))).train()
    assert model.config._attn_implementation == "sdpa"
    loss = plain_loss(model, shared_rows())
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), gradients(model)


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, set[str]]]:
    """One of the WAYS, with constants lowered so that few tokens make many chunks and blocks."""
    packing, uses = WAYS[request.param]
    if "chunks" in uses:
        monkeypatch.setattr(head, "CHUNK_BYTES", 20 * VOCABULARY * 4)
    if "twins" in uses:
        monkeypatch.setattr(pointwise, "native", lambda: Compiled(library=None, note="for a test"))
    forget_library()
    with small_blocks() if "blocks" in uses else nullcontext():
        yield packing, uses
    monkeypatch.undo()
    forget_library()


def forget_library() -> None:
    for function in vars(pointwise).values():
        if isinstance(function, functools._lru_cache_wrapper):
            function.cache_clear()


def prepared(family: str, uses: set[str]) -> nn.Module:
    base = tiny(family)
    if "checkpointing" in uses:
        base.activation_checkpointing_enable({"use_reentrant": False})
    model = adapted(base)
    if "attention" in uses:
        base.set_attn_implementation(attention.NAME)
    if "fused" in uses:
        assert fuse(model, pack=True, longest=LONGEST).num_layers == 2
    return model.train()


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_every_gradient_are_those_of_padded_rows(family: str, way: tuple[str, set[str]]) -> None:
    packing, uses = way
    model = prepared(family, uses)
    loss, expected = plain(family)
    assert engine_loss(model, in_packs(shared_rows(), packing)) == pytest.approx(loss, rel=1e-6)
    assert_plain(gradients(model), expected)


def with_dropout(family: str, uses: set[str]) -> nn.Module:
    """A model whose masks follow from the tokens."""
    base = tiny(family)
    if "checkpointing" in uses:
        base.activation_checkpointing_enable({"use_reentrant": False})
    model = adapted(base, dropout=0.3)
    fusion = fuse(model, pack="fused" in uses, longest=LONGEST)
    assert fusion.num_layers == (2 if "fused" in uses else 0)
    return model.train()


@pytest.mark.parametrize("way", [way for way, (_, uses) in WAYS.items() if "fused" in uses], indirect=True)
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_dropout_in_packs_is_that_of_padded_rows(family: str, way: tuple[str, set[str]]) -> None:
    """If these are given the keys that their tokens have in the pack: in a tree a hash of all tokens up to them."""
    packing, uses = way
    rows = shared_rows()
    batches = in_packs(rows, packing)
    longest, packer = max(map(len, rows)), trees if packing == "tree" else bins
    keys = [packer([row], [number], LONGEST)[0].keys_T for number, row in enumerate(rows)]
    padded = [np.pad(own, (0, longest - len(own))) for own in keys]
    plain_batch = replace(collate(rows, range(len(rows)), CPU), keys_A=torch.from_numpy(np.concatenate(padded)))
    loss, expected = step_gradients(with_dropout(family, set()), [plain_batch])
    found_loss, found = step_gradients(with_dropout(family, uses), batches)
    undropped = step_gradients(adapted(tiny(family)), batches)[1]
    assert found_loss == pytest.approx(loss, rel=1e-6)
    for gradient, other, without in zip(found, expected, undropped, strict=True):
        assert (gradient - other).norm() <= 1e-5 * other.norm()
        assert (gradient - without).norm() > 0.05 * other.norm()


@functools.cache
def fused_qwen3() -> nn.Module:
    model = adapted(tiny("qwen3")).train()
    assert fuse(model, pack=True, longest=LONGEST).num_layers == 2
    return model


@functools.cache
def plain_qwen3() -> nn.Module:
    return adapted(tiny("qwen3")).train()


def assert_equals_plain(rows: list[TokenRow], budget: int = 200) -> None:
    """Relative to each tensor; but where every query sees one key, as in a row of two tokens, q's and k's gradients are zero, as the
    difference of equal numbers: there relative to a fiftieth of the largest gradient (a drawn tree came to 1.04e-5 of a hundredth)."""
    expected = plain_loss(plain_qwen3(), rows)
    expected.backward()  # type: ignore[no-untyped-call]
    wanted = gradients(plain_qwen3())
    largest = max(gradient.norm() for gradient in wanted.values())
    for packing in ("bins", "tree"):
        assert engine_loss(fused_qwen3(), in_packs(rows, packing, budget)) == pytest.approx(expected.item(), rel=1e-5)
        found = gradients(fused_qwen3())
        for name, gradient in wanted.items():
            assert (found[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 0.02 * largest), name


EDGES: dict[str, list[TokenRow]] = {
    "one row": [row([5, 9, 2, 7, 7, 1], lambda index: index > 2)],
    "one row of one target": [row([5, 9, 2, 7, 7, 1], lambda index: index == 3)],
    "rows of two tokens": [row([5, 9], lambda index: True), row([9, 5], lambda index: True)],
    "nothing shared": [row([token] * (3 + 5 * token), lambda index: index % 2 == 1) for token in range(1, 9)],
    "twins": [row(range(30), lambda index: index > 20)] * 3,
    "twins of different targets": [row(range(30), lambda index, most=most: index > most) for most in (5, 15, 25)],
    "each begins the next": [row(range(length), lambda index: True) for length in (1, 2, 17, 18, 40, LONGEST)],
    "a fork after every token": [row([*range(length), 95], lambda index: True) for length in range(17, 60)],
    "targets only in the trunk": [row([*range(30), end, end], lambda index: index < 30) for end in (50, 60, 70)],
    "targets only at the ends": [row([*range(30), end, end], lambda index: index == 31) for end in (50, 60, 70)],
}


@pytest.mark.parametrize("edge", EDGES)
def test_rows_of_every_kind_equal_plain(edge: str) -> None:
    assert_equals_plain(EDGES[edge])


SEGMENTS = st.sampled_from([[1], [2, 3], [4] * 16, [5, 6] * 9, list(range(20))])


@st.composite
def some_rows(draw: st.DrawFn) -> list[TokenRow]:
    """Rows that go on from somewhere in earlier ones, begin them, or are the same, each supervised at random; at least one target."""
    lines: list[list[int]] = [[]]
    for _ in range(draw(st.integers(1, 7))):
        parent = draw(st.sampled_from(lines))
        kept = parent[: draw(st.integers(0, len(parent)))]
        lines.append([*kept, *itertools.chain(*draw(st.lists(SEGMENTS, min_size=not kept, max_size=3)))][:LONGEST])
    masks = [draw(st.integers(0, 255)) for _ in lines]
    rows = [row(ids, lambda index, mask=mask: bool(mask >> index % 8 & 1)) for ids, mask in zip(lines[1:], masks[1:], strict=True)]
    return [*rows, row([90, 91, 92], lambda index: index == 2)]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(rows=some_rows(), budget=st.sampled_from([1, 60, 200, 10**6]))
def test_random_trees_equal_plain(rows: list[TokenRow], budget: int) -> None:
    assert_equals_plain(rows, budget)


def logits_of(model: nn.Module, pack: Pack) -> Tensor:
    """At every token of a pack."""
    with torch.no_grad():
        return model(**of_pack(pack, CPU).inputs()).logits[0]  # type: ignore[no-any-return]


def inference(family: str) -> nn.Module:
    model = adapted(tiny(family)).eval()
    assert fuse(model, pack=True, longest=LONGEST).num_layers == 2
    return model


def with_other_tokens(pack: Pack, start: int, stop: int) -> Pack:
    ids_T = pack.ids_T.copy()
    ids_T[start:stop] = (ids_T[start:stop] + 7) % VOCABULARY
    return replace(pack, ids_T=ids_T)


@pytest.mark.parametrize("packer", [bins, trees])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_tokens_in_a_node_move_its_descendants_and_nothing_else(family: str, packer: object) -> None:
    """Neither siblings, nor what stands above, nor another row (trap 3). A mixture takes an expert's tokens at once: other roundings."""
    model, rows = inference(family), shared_rows()
    (pack,) = packer(rows, range(len(rows)), 10**6)  # type: ignore[operator]
    before = logits_of(model, pack)
    for node in pack.nodes:
        moved = (logits_of(model, with_other_tokens(pack, node.start, node.stop)) - before).abs().amax(-1)
        inside = np.zeros(len(moved), np.bool_)
        inside[node.start : node.end] = True
        assert moved[~inside].max() <= (1e-5 if family == "qwen3_moe" else 0)
        near = slice(node.start, min(node.stop + 8, node.end))  # a window may hide the node from farther descendants
        assert moved[near].min() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_any_order_have_the_logits_of_rows_alone(family: str) -> None:
    """Positions begin anew in each row and go on in each branch (trap 5)."""
    model, plain_model = inference(family), adapted(tiny(family)).eval()
    rows = shared_rows()
    with torch.no_grad():
        alone = {row.ids.tobytes(): plain_model(input_ids=torch.from_numpy(row.ids.astype(np.int64))[None]).logits[0] for row in rows}
    for order, packer in ((rows, bins), (rows[::-1], bins), (rows[::2] + rows[1::2], trees)):
        (pack,) = packer(order, range(len(order)), 10**6)
        logits, seen_TT = logits_of(model, pack), attention.Tree.of(pack).mask(CPU)
        for node in pack.nodes:
            if node.end == node.stop:
                places = seen_TT[node.stop - 1].nonzero()[:, 0]
                expected = alone[pack.ids_T[places].astype(np.int32).tobytes()]
                assert (logits[places] - expected).norm() <= 1e-5 * expected.norm()


def steps(packing: str, *, fused: bool, num_steps: int = 50) -> tuple[list[float], Tensor]:
    """Losses and final adapter of a run over dialogues that share a prompt, from a fresh adapter, with AdamW."""
    model = add_lora(tiny("qwen3"), Lora(r=4, alpha=8), seed=1).train()
    if fused:
        assert fuse(model, pack=True, longest=LONGEST).num_layers == 2
    optimizer = make_optimizer(trained_of(model), Training(learning_rate=1e-3))
    rows, losses = shared_rows(), []
    for step in range(1, num_steps + 1):
        chosen = [rows[place] for place in np.random.default_rng(step).permutation(len(rows))[:8]]
        batches = in_packs(chosen, packing)
        losses.append(train_step(model, optimizer, batches, precision=Precision.of(torch.float32, CPU), max_norm=1.0, seeds=(0, step)).loss)
    return losses, torch.cat([weight.detach().flatten() for weight in model.parameters() if weight.requires_grad])


def test_fifty_steps_are_the_same_steps() -> None:
    losses, adapter = steps("off", fused=False)
    packed_losses, packed_adapter = steps("tree", fused=True)
    fresh = steps("off", fused=False, num_steps=0)[1]
    assert losses[-1] < losses[0] - 0.1
    assert packed_losses == pytest.approx(losses, rel=1e-4)
    assert (packed_adapter - adapter).norm() <= 1e-3 * (adapter - fresh).norm()

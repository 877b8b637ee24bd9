"""What a fused step over a tree computes and keeps, counted and not timed: the products that the work needs, and no more."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from luthier.model.attention import Tree
from luthier.model.fuse import fuse
from luthier.train.batch import MicroBatch
from luthier.train.objective import nll_sum
from tests.model.zoo import adapted, bytes_kept, in_packs, row, tiny

HIDDEN, FF, LAYERS, HEADS, GROUPS, SIZE, RANK, VOCABULARY = 64, 160, 3, 4, 2, 16, 4, 96
SHAPE = {"hidden_size": HIDDEN, "intermediate_size": FF, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "head_dim": SIZE}
INTO_ATTENTION = [(HIDDEN, HEADS * SIZE), (HIDDEN, GROUPS * SIZE), (HIDDEN, GROUPS * SIZE)]
AFTER_ATTENTION = [(HEADS * SIZE, HIDDEN), (HIDDEN, FF), (HIDDEN, FF), (FF, HIDDEN)]
"""In and out of each adapted matrix of a layer."""
PROMPT, TURN = [1] * 160, [2] * 64
ROWS = [(PROMPT, 0), (PROMPT + TURN, 160), (PROMPT + TURN + [3] * 64, 224), (PROMPT + TURN + [4] * 32, 224), ([5] * 96, 48)]
"""Ids, and after which place they are supervised."""


@pytest.fixture
def batch() -> MicroBatch:
    """Five rows of 1,024 tokens in a tree of 416."""
    rows = [row(ids, lambda index, first=first: index > first and index % 4 == 0) for ids, first in ROWS]
    (batch,) = in_packs(rows, "tree", 10**6)
    assert (batch.num_tokens, batch.ids_BT.numel()) == (1024, 160 + 64 + 64 + 32 + 96)
    return batch


def model() -> Any:
    made = adapted(tiny("qwen3", **SHAPE), r=RANK).train()
    assert fuse(made, pack=True, longest=300).num_layers == LAYERS
    return made


def product(_: Any, left: torch.Size, right: torch.Size, **rest: Any) -> int:
    """Operations of left · right added onto a tensor in place, which torch's counter does not know."""
    return 2 * left.numel() * right[-1]


def operations(step: Callable[[], object]) -> Counter[str]:
    """Floating point operations of products: of matrices (`mm`), and of stacks of them (`bmm`), which are attention's."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product, torch.ops.aten.baddbmm_: product})
    with counter:
        step()
    found: Counter[str] = Counter()
    for operation, number in counter.get_flop_counts()["Global"].items():
        found["bmm" if "bmm" in str(operation) else "mm"] += number
    return found


def pairs(tree: Tree) -> int:
    """Of a query and a key that it sees."""
    return int(tree.mask(torch.device("cpu")).sum())


def layers_operations(batch: MicroBatch, per_frozen: int, per_adapter: int) -> int:
    """All layers' products, so many operations for each number of a matrix and token; the last, after attention, for sources only."""
    tokens, needed = batch.ids_BT.numel(), len(batch.sources_N.unique())

    def of(products: list[tuple[int, int]]) -> int:
        return sum(per_frozen * width * out + per_adapter * RANK * (width + out) for width, out in products)

    return LAYERS * tokens * of(INTO_ATTENTION) + ((LAYERS - 1) * tokens + needed) * of(AFTER_ATTENTION)


def test_a_step_makes_the_products_that_it_must(batch: MicroBatch) -> None:
    """2 operations for each frozen number and token in either direction, 2 · 3 for each of the adapter's, and the head at targets only."""
    net = model()
    found = operations(lambda: nll_sum(net, batch).backward())  # type: ignore[no-untyped-call]
    into_embeddings = 2 * batch.ids_BT.numel() * sum(width * out + RANK * width for width, out in INTO_ATTENTION)  # which are frozen
    head = 2 * 2 * len(batch.targets_N) * VOCABULARY * HIDDEN
    assert found["mm"] == layers_operations(batch, 2 * 2, 2 * 3) - into_embeddings + head
    # Attention: 2 products forward, 5 backward, over the pairs that are seen; a node's square with itself is computed whole.
    seen = 7 * 2 * LAYERS * HEADS * SIZE * pairs(batch.tree)  # type: ignore[arg-type]
    assert seen < found["bmm"] <= 1.6 * seen


def test_an_evaluation_makes_a_forwards_products_only(batch: MicroBatch) -> None:
    net = model().eval()
    with torch.no_grad():
        found = operations(lambda: nll_sum(net, batch))
    assert found["mm"] == layers_operations(batch, 2, 2) + 2 * len(batch.targets_N) * VOCABULARY * HIDDEN


def test_a_token_keeps_little_for_the_backward(batch: MicroBatch) -> None:
    """Of a layer: what enters the norms, q·k·v, attention's output, gate·up, the adapters' middles, and a few statistics; 4 bytes each."""
    net = model()
    loss, kept = bytes_kept(net, batch)
    assert loss.requires_grad
    tokens, needed = batch.ids_BT.numel(), len(batch.sources_N.unique())
    until_attention = HIDDEN + (HEADS + 2 * GROUPS) * SIZE + 3 * RANK + HEADS * SIZE + HEADS + 1
    after_attention = HIDDEN + 2 * FF + 4 * RANK + 1
    last = HEADS * SIZE + 3 * HIDDEN + 1  # attention's output once more, transformers' final norm, the head's gradient
    values = tokens * (LAYERS * until_attention + (LAYERS - 1) * after_attention) + needed * (after_attention + last)
    assert 0.95 * 4 * values < kept <= 1.01 * 4 * values

"""Which rows a step takes, and in which micro batches: functions of seed, step and micro batch size, which a run keeps in plan.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from luthier.data.store import TokenRows
from luthier.model.dropout import seed_of
from luthier.plan.steps import Steps

Indices = npt.NDArray[np.int64]
Packing = Literal["off", "bins", "tree"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchSize:
    """How a step's rows are divided: padded, at most so many rows and tokens; packed, at most so many tokens. Always one row."""

    rows: int
    tokens: int
    packing: Packing = "off"


@lru_cache(maxsize=2)  # an epoch's steps ask for the same order: sorting 100,000 rows takes 8 ms
def epoch_order(seed: int, epoch: int, rows: TokenRows) -> Indices:
    """The rows of an epoch (from 0) in the order they are trained on; the same on every machine and version of numpy.

    Examples are sorted by a random key of Philox, whose raw stream numpy guarantees, as it does not for `permutation`. The rows of one
    example, a dialogue trained turn by turn, stay together: in one step their shared turns are computed once.
    """
    keys = np.random.Philox(key=[seed, epoch]).random_raw(int(rows.example_index.max()) + 1)
    order = np.argsort(keys[rows.example_index], kind="stable")
    order.setflags(write=False)
    return order


def rows_of_step(step: int, steps: Steps, seed: int, rows: TokenRows) -> Indices:
    """The rows of a step (from 1); an epoch's last step has what is left."""
    epoch, step_of_epoch = divmod(step - 1, steps.per_epoch)
    start = step_of_epoch * steps.global_batch_size
    return epoch_order(seed, epoch, rows)[start : start + steps.global_batch_size]


def padded_batches(rows: Indices, lengths: npt.NDArray[np.int32], size: MicroBatchSize) -> list[Indices]:
    """The rows divided into padded micro batches of like lengths, the longest first."""
    left = rows[np.argsort(-lengths[rows], kind="stable")]
    batches: list[Indices] = []
    while len(left):
        num_rows = min(size.rows, max(1, size.tokens // int(lengths[left[0]])))
        batches.append(left[:num_rows])
        left = left[num_rows:]
    return batches


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """What torch's generator starts from in one micro batch, for a model with dropout of its own; the adapter's goes by token."""
    return seed_of(f"{seed}/{step}/{micro_batch}")


def origins_text(origins: Sequence[str]) -> str:
    """`a.jsonl:3, a.jsonl:9 …`: the first few, for an error."""
    return ", ".join(origins[:8]) + (" …" if len(origins) > 8 else "")

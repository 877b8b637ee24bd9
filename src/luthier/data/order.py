"""Which rows a step takes, which rank takes them, and in which padded micro batches: functions of seed, step and size. numpy only."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from luthier.data.store import Rows
from luthier.runs.workload import MicroBatchSize

Indices = npt.NDArray[np.int64]

VALIDATED_AT_ONCE = 256


@lru_cache(maxsize=2)  # an epoch's steps ask for the same order: sorting 100,000 rows takes 8 ms
def epoch_order(seed: int, epoch: int, rows: Rows) -> Indices:
    """The rows of an epoch (from 0) in the order they are trained on; the same on every machine and version of numpy.

    Examples are sorted by a random key of Philox, whose raw stream numpy guarantees, as it does not for `permutation`. The rows of one
    example, a dialogue trained turn by turn, stay together: in one step their shared turns are computed once.
    """
    keys = np.random.Philox(key=[seed, epoch]).random_raw(int(rows.example_index.max()) + 1)
    order = np.argsort(keys[rows.example_index], kind="stable")
    order.setflags(write=False)
    return order


def rows_of_step(step: int, rows_per_step: int, seed: int, rows: Rows) -> Indices:
    """The rows of a step (from 1); an epoch's last step has what is left."""
    epoch, step_of_epoch = divmod(step - 1, -(-len(rows) // rows_per_step))
    start = step_of_epoch * rows_per_step
    return epoch_order(seed, epoch, rows)[start : start + rows_per_step]


def rank_shares(rows: Rows, indices: Indices, num_ranks: int) -> list[Indices]:
    """These rows divided among the ranks, with like numbers of tokens; a rank may have none.

    The rows of one example stay together, for they begin alike; only an example of more tokens than a rank's even share is cut. Then the
    longest piece that is left goes to the rank that has the least (Graham 1969: at most 4/3 of the best division).
    """
    if num_ranks == 1:
        return [indices]
    even = -(-int(rows.lengths[indices].sum()) // num_ranks)
    pieces: list[tuple[int, list[int]]] = []  # tokens, and places among the indices
    example = -1
    for place, index in enumerate(indices):
        tokens = int(rows.lengths[index])
        if rows.example_index[index] == example and pieces[-1][0] + tokens <= even:
            pieces[-1] = (pieces[-1][0] + tokens, [*pieces[-1][1], place])
        else:
            pieces.append((tokens, [place]))
        example = rows.example_index[index]
    taken: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for tokens, places in sorted(pieces, key=lambda piece: -piece[0]):
        rank = loads.index(min(loads))
        loads[rank] += tokens
        taken[rank] += places
    return [indices[sorted(places)] for places in taken]


def validated_together(rows: Rows) -> Iterator[Indices]:
    """The rows of a split in parts that are divided into micro batches: enough to share prefixes, few enough to divide in milliseconds."""
    for start in range(0, len(rows), VALIDATED_AT_ONCE):
        yield np.arange(start, min(start + VALIDATED_AT_ONCE, len(rows)))


def padded_batches(rows: Indices, lengths: npt.NDArray[np.int32], size: MicroBatchSize) -> list[Indices]:
    """The rows divided into padded micro batches of like lengths, the longest first."""
    left = rows[np.argsort(-lengths[rows], kind="stable")]
    batches: list[Indices] = []
    while len(left):
        num_rows = min(size.rows, max(1, size.tokens // int(lengths[left[0]])))
        batches.append(left[:num_rows])
        left = left[num_rows:]
    return batches

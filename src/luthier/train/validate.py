"""Validation loss: the sum over all supervised tokens of a split divided by their count, whatever the batch size and number of ranks.

R = rows of the split.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from luthier.data.order import Indices, validated_together
from luthier.data.store import TokenRows
from luthier.runs.workload import MicroBatchSize
from luthier.train.batch import micro_batches
from luthier.train.passes import Seen, Stopped, forward
from luthier.train.precision import Precision
from luthier.train.step import evened, together


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ValidationRecord:
    """Loss per supervised token, how many tokens it was measured on, and the sum of each row's."""

    loss: float
    num_tokens: int
    num_targets: int
    losses_R: npt.NDArray[np.float64]
    targets_R: npt.NDArray[np.int64]
    """Supervised tokens of each row, over which it was summed."""


def validation_loss(model: nn.Module, rows: TokenRows, size: MicroBatchSize, precision: Precision) -> ValidationRecord:
    """The loss of a split's rows without dropout; the model is left in the mode it was in.

    Raises Stopped where a rank is to end, and TooLarge where one has too little memory.
    """
    ranks, losses_R = precision.ranks, np.zeros(len(rows))
    for part in validated_together(rows):
        for seen in _forward(model, rows, part, size, precision):
            nll_N = seen.nll_N.double().cpu().numpy()  # after all of the part are computed; a validation's loss is logged
            losses_R += np.bincount(seen.rows_M, weights=nll_N[seen.targets_M], minlength=len(rows))
    losses_R = np.array(ranks.sum(losses_R.tolist()))  # a row is on one rank: what is added to it is 0, and its bits stay
    num_targets = int(rows.num_supervised.sum())
    return ValidationRecord(
        loss=float(losses_R.sum()) / num_targets,
        num_tokens=int(rows.lengths.sum()),
        num_targets=num_targets,
        losses_R=losses_R,
        targets_R=np.asarray(rows.num_supervised, np.int64),
    )


def _forward(model: nn.Module, rows: TokenRows, part: Indices, size: MicroBatchSize, precision: Precision) -> list[Seen]:
    """What this rank sees of its share of these rows. Ranks agree on how many micro batches that are before the first, for a stage that
    asked in between would wait for one that waits for it; and after the last on whether all have computed them."""
    ranks, seen, stopped = precision.ranks, list[Seen](), False
    batches = list(evened(micro_batches(rows, ranks.share(rows, part), size, precision.device), size, precision))
    with together(ranks):
        try:
            seen = forward(model, batches, precision)
        except Stopped:
            stopped = True
    if any(ranks.any([stopped])):
        raise Stopped
    return seen

"""Validation loss: the sum over all supervised tokens of a split divided by their count, whatever the batch size and number of ranks.

R = rows of the split.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from luthier.data.order import validated_together
from luthier.data.store import TokenRows
from luthier.runs.workload import MicroBatchSize
from luthier.train.batch import MicroBatch, micro_batches
from luthier.train.passes import Stopped, forward
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
    ranks, losses_R, stopped = precision.ranks, np.zeros(len(rows)), False
    with together(ranks):
        try:
            for seen in forward(model, _batches(rows, size, precision), precision):
                nll_N = seen.nll_N.double().cpu().numpy()  # after all of them are computed; once per validation, whose loss is logged
                losses_R += np.bincount(seen.rows_M, weights=nll_N[seen.targets_M], minlength=len(rows))
        except Stopped:
            stopped = True
    if any(ranks.any([stopped])):
        raise Stopped
    losses_R = np.array(ranks.sum(losses_R.tolist()))  # a row is on one rank: what is added to it is 0, and its bits stay
    num_targets = int(rows.num_supervised.sum())
    return ValidationRecord(
        loss=float(losses_R.sum()) / num_targets,
        num_tokens=int(rows.lengths.sum()),
        num_targets=num_targets,
        losses_R=losses_R,
        targets_R=np.asarray(rows.num_supervised, np.int64),
    )


def _batches(rows: TokenRows, size: MicroBatchSize, precision: Precision) -> Iterator[MicroBatch]:
    """The micro batches of this rank's share."""
    for part in validated_together(rows):
        yield from evened(micro_batches(rows, precision.ranks.share(rows, part), size, precision.device), size, precision)

"""Validation loss: the sum over all supervised tokens of a split divided by their count, whatever the batch size and number of ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from luthier.data.order import validated_together
from luthier.data.store import TokenRows
from luthier.runs.workload import MicroBatchSize
from luthier.train.batch import MicroBatch, micro_batches
from luthier.train.passes import Stopped, forward
from luthier.train.precision import Precision
from luthier.train.step import evened, together


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecord:
    """Loss per supervised token, and how many tokens it was measured on."""

    loss: float
    num_tokens: int
    num_targets: int


def validation_loss(model: nn.Module, rows: TokenRows, size: MicroBatchSize, precision: Precision) -> ValidationRecord:
    """The loss of a split's rows without dropout; the model is left in the mode it was in.

    Raises Stopped where a rank is to end, and TooLarge where one has too little memory.
    """
    ranks, total, stopped = precision.ranks, 0.0, False
    with together(ranks):
        try:
            total = forward(model, _batches(rows, size, precision), precision).item()  # once per validation, whose loss is logged
        except Stopped:
            stopped = True
    if any(ranks.any([stopped])):
        raise Stopped
    (summed,) = ranks.sum([total])
    num_targets = int(rows.num_supervised.sum())
    return ValidationRecord(loss=summed / num_targets, num_tokens=int(rows.lengths.sum()), num_targets=num_targets)


def _batches(rows: TokenRows, size: MicroBatchSize, precision: Precision) -> Iterator[MicroBatch]:
    """The micro batches of this rank's share."""
    for part in validated_together(rows):
        yield from evened(micro_batches(rows, precision.ranks.share(rows, part), size, precision.device), size, precision)

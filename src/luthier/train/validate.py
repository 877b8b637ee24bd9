"""Validation loss: the sum over all supervised tokens of a split divided by their count, whatever the batch size and number of ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from luthier.data.order import validated_together
from luthier.data.store import TokenRows
from luthier.runs.workload import MicroBatchSize
from luthier.train.batch import MicroBatch, micro_batches
from luthier.train.objective import nll_sum
from luthier.train.step import Precision, Stopped, together


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
    total, ranks = torch.zeros((), dtype=torch.float64, device=precision.device), precision.ranks
    training, stopped = model.training, False
    model.eval()
    with together(ranks), torch.inference_mode(), precision.autocast():
        for batch in _batches(rows, size, precision):
            if stopped := ranks.stop():
                break
            total += nll_sum(model, batch)
    model.train(training)
    if any(ranks.any([stopped])):
        raise Stopped
    (summed,) = ranks.sum([total.item()])  # .item(): once per validation, whose loss is logged
    num_targets = int(rows.num_supervised.sum())
    return ValidationRecord(loss=summed / num_targets, num_tokens=int(rows.lengths.sum()), num_targets=num_targets)


def _batches(rows: TokenRows, size: MicroBatchSize, precision: Precision) -> Iterator[MicroBatch]:
    """The micro batches of this rank's share."""
    for part in validated_together(rows):
        yield from micro_batches(rows, precision.ranks.share(rows, part), size, precision.device)

"""Validation loss: the sum over all supervised tokens of a split divided by their count, whatever the batch size."""

from dataclasses import dataclass

import torch
from torch import nn

from luthier.data.order import validated_together
from luthier.data.store import TokenRows
from luthier.runs.workload import MicroBatchSize
from luthier.train.batch import micro_batches
from luthier.train.objective import nll_sum
from luthier.train.step import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecord:
    """Loss per supervised token, and how many tokens it was measured on."""

    loss: float
    num_tokens: int
    num_targets: int


def validation_loss(model: nn.Module, rows: TokenRows, size: MicroBatchSize, precision: Precision) -> ValidationRecord:
    """The loss of a split's rows without dropout; the model is left in the mode it was in."""
    total = torch.zeros((), dtype=torch.float64, device=precision.device)
    training = model.training
    model.eval()
    with torch.inference_mode(), precision.autocast():
        for part in validated_together(rows):
            for batch in micro_batches(rows, part, size, precision.device):
                total += nll_sum(model, batch)
    model.train(training)
    num_targets = int(rows.num_supervised.sum())
    # .item(): once per validation, whose loss is logged
    return ValidationRecord(loss=total.item() / num_targets, num_tokens=int(rows.lengths.sum()), num_targets=num_targets)

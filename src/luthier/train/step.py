"""One optimizer step: accumulate, check, clip, update."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from luthier.model.dropout import draw, seed_of
from luthier.train.batch import MicroBatch
from luthier.train.objective import nll_sum
from luthier.train.optim import trained_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The compute type. Frozen weights are stored in it, trained ones in float32, and autocast computes in it.

    Only float16 needs the scaler; for the others it does nothing.
    """

    device: torch.device
    dtype: torch.dtype
    scaler: torch.amp.GradScaler = field(repr=False)

    @classmethod
    def of(cls, dtype: torch.dtype, device: torch.device) -> "Precision":
        """The precision for a compute type."""
        return cls(device=device, dtype=dtype, scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16))

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        context: AbstractContextManager[None] = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one step did. `finite` is false where loss or gradient was not; then nothing was updated."""

    loss: float
    """Mean over the step's supervised tokens."""
    grad_norm: float
    """Before clipping."""
    num_tokens: int
    num_targets: int
    finite: bool
    num_overflows: int
    """How often float16's loss scale was too large and the step was computed again with half of it."""


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[MicroBatch],
    *,
    precision: Precision,
    max_norm: float,
    seeds: tuple[int, int],
) -> StepRecord:
    """Update the model once by the summed loss of all micro batches divided by their supervised tokens.

    `seeds` is (seed, step), from which dropout follows. A gradient that is not finite is never applied. Under float16 it may only mean
    that the loss scale is too large: the scale is halved and the step computed again, so that no rows are lost.
    """
    overflows = 0
    while True:
        loss, norm = _accumulate(model, optimizer, batches, precision, seeds)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            if max_norm:
                clip_grads_with_norm_(trained_parameters(optimizer), max_norm, torch.tensor(norm, device=precision.device))
            optimizer.step()
        scale = precision.scaler.get_scale()  # 1, without a sync, but for float16
        precision.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if finite or not math.isfinite(loss) or not precision.scaler.is_enabled() or scale <= 1:
            break
        overflows += 1
    return StepRecord(
        loss=loss,
        grad_norm=norm,
        num_tokens=sum(batch.num_tokens for batch in batches),
        num_targets=sum(batch.num_targets for batch in batches),
        finite=finite,
        num_overflows=overflows,
    )


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """What torch's generator starts from in one micro batch, for a model with dropout of its own; the adapter's goes by token."""
    return seed_of(f"{seed}/{step}/{micro_batch}")


def _accumulate(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[MicroBatch], precision: Precision, seeds: tuple[int, int]
) -> tuple[float, float]:
    """Leave the step's gradient in the parameters; loss per supervised token, and the gradient's norm."""
    num_targets = sum(batch.num_targets for batch in batches)
    loss = torch.zeros((), device=precision.device)
    for index, batch in enumerate(batches):
        torch.manual_seed(dropout_seed(*seeds, index))
        draw(model, batch.keys_A, batch.needed_S, seeds)
        with precision.autocast():
            part = nll_sum(model, batch) / num_targets
        precision.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
        loss += part.detach()
    precision.scaler.unscale_(optimizer)
    gradients: list[Tensor] = [parameter.grad for parameter in trained_parameters(optimizer) if parameter.grad is not None]
    norm = get_total_norm(gradients)
    loss_value, norm_value = torch.stack([loss, norm]).tolist()  # the step's only sync: it decides on the update, and both are logged
    return loss_value, norm_value

"""One optimizer step: accumulate, check, clip, update."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from luthier.model.dropout import draw, seed_of
from luthier.model.peak import is_out_of_memory
from luthier.train.batch import MicroBatch
from luthier.train.objective import nll_sum
from luthier.train.optim import trained_parameters
from luthier.train.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The compute type, where, and by which ranks. Frozen weights are stored in it, trained ones in float32, and autocast computes in it.

    Only float16 needs the scaler; for the others it does nothing.
    """

    device: torch.device
    dtype: torch.dtype
    scaler: torch.amp.GradScaler = field(repr=False)
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, dtype: torch.dtype, device: torch.device, ranks: Ranks = ALONE) -> "Precision":
        """The precision for a compute type."""
        return cls(device=device, dtype=dtype, scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16), ranks=ranks)

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        context: AbstractContextManager[None] = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one step did, on all ranks. `finite` is false where loss or gradient was not; then nothing was updated."""

    loss: float
    """Mean over the step's supervised tokens."""
    grad_norm: float
    """Before clipping."""
    num_tokens: int
    num_targets: int
    finite: bool
    num_overflows: int
    """How often float16's loss scale was too large and the step was computed again with half of it."""


class Stopped(Exception):
    """What was begun was broken off, because a signal asks to end; nothing was updated."""


class TooLarge(MemoryError):
    """A micro batch did not fit into memory; nothing was updated."""


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[MicroBatch],
    *,
    precision: Precision,
    max_norm: float,
    seeds: tuple[int, int],
) -> StepRecord:
    """Update the model once by the summed loss of all ranks' micro batches divided by their supervised tokens; `batches` are this rank's.

    Gradients are summed over the ranks before they are looked at: norm, update and what is recorded are the same on all, bit for bit.
    `seeds` is (seed, step), from which dropout follows. A gradient that is not finite is never applied. Under float16 it may only mean
    that the loss scale is too large: the scale is halved and the step computed again, so that no rows are lost. Raises Stopped where
    a rank is to end, and TooLarge where one has too little memory.
    """
    overflows = 0
    counts = precision.ranks.sum([sum(batch.num_tokens for batch in batches), sum(batch.num_targets for batch in batches)])
    num_tokens, num_targets = map(int, counts)  # before the backward pass, so that what is added up are parts of one mean
    while True:
        stopped, short = False, ""
        try:
            part = _backward(model, batches, precision, seeds, num_targets)
        except Stopped:
            stopped = True
        except (MemoryError, OSError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            short = str(error).partition("\n")[0] or type(error).__name__
        anyone_stopped, anyone_short = precision.ranks.any([stopped, bool(short)])  # what stops one rank stops all, in the same step
        if anyone_stopped:
            raise Stopped
        if anyone_short:  # and what the failed micro batch had computed is gone with the error
            raise TooLarge(short or "another rank had no memory")
        loss, norm = _summed(part, optimizer, precision)
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
        num_tokens=num_tokens,
        num_targets=num_targets,
        finite=finite,
        num_overflows=overflows,
    )


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Where memory is too short for one rank to do what stands within, all raise TooLarge."""
    short = ""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        short = str(error).partition("\n")[0] or type(error).__name__
    if any(ranks.any([bool(short)])):
        raise TooLarge(short or "another rank had no memory")


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """What torch's generator starts from in one micro batch, for a model with dropout of its own; the adapter's goes by token."""
    return seed_of(f"{seed}/{step}/{micro_batch}")


def _backward(
    model: nn.Module,
    batches: Sequence[MicroBatch],
    precision: Precision,
    seeds: tuple[int, int],
    num_targets: int,
) -> Tensor:
    """Leave the gradient of this rank's rows in the parameters; their part of the loss."""
    ranks = precision.ranks
    loss = torch.zeros((), device=precision.device)
    for index, batch in enumerate(batches):
        if ranks.stop():
            raise Stopped
        torch.manual_seed(dropout_seed(*seeds, ranks.mesh.data.index + index * ranks.mesh.data.size))
        draw(model, batch.keys_A, batch.needed_S, seeds)
        with precision.autocast():
            part = nll_sum(model, batch) / num_targets
        precision.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
        loss += part.detach()
    return loss


def _summed(loss: Tensor, optimizer: torch.optim.Optimizer, precision: Precision) -> tuple[float, float]:
    """Leave the step's gradient, of all ranks, in the parameters; loss per supervised token, and the gradient's norm."""
    ranks = precision.ranks
    ranks.sum_gradients(trained_parameters(optimizer))  # before they are unscaled: what overflowed on one rank is infinite on all
    precision.scaler.unscale_(optimizer)
    norm = ranks.norm(trained_parameters(optimizer))
    loss_value, norm_value = torch.stack([loss, norm]).tolist()  # the step's only sync: it decides on the update, and both are logged
    (loss_sum,) = ranks.sum([loss_value])
    return loss_sum, norm_value

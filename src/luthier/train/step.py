"""One optimizer step: accumulate, check, clip, update."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from luthier.model.peak import is_out_of_memory
from luthier.runs.workload import MicroBatchSize
from luthier.train.batch import MicroBatch, nothing
from luthier.train.optim import trained_parameters
from luthier.train.passes import Stopped, backward
from luthier.train.precision import Precision
from luthier.train.ranks import Ranks


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
    if not num_tokens:  # as where no answer tells anything: without a gradient float16's scaler has nothing to look at
        return StepRecord(loss=0.0, grad_norm=0.0, num_tokens=0, num_targets=0, finite=True, num_overflows=0)
    while True:
        stopped, short = False, ""
        try:
            part = backward(model, batches, precision, seeds=seeds, num_targets=num_targets)
        except Stopped:
            stopped = True
        except (MemoryError, OSError, RuntimeError) as error:
            if precision.ranks.divided or not is_out_of_memory(error):  # the others wait in the middle of this micro batch
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
        if not math.isfinite(norm):
            _back_off(precision.scaler, scale)
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
        if ranks.divided or not is_out_of_memory(error):  # the others may wait for this one in the middle of it
            raise
        short = str(error).partition("\n")[0] or type(error).__name__
    if any(ranks.any([bool(short)])):
        raise TooLarge(short or "another rank had no memory")


def evened(batches: Sequence[MicroBatch], size: MicroBatchSize, precision: Precision) -> list[MicroBatch]:
    """As many micro batches as any replica has, where replicas compute them together: those that it lacks have nothing that counts."""
    ranks = precision.ranks
    most = int(*ranks.largest([len(batches)])) if ranks.sharded else len(batches)
    return [*batches, *(nothing(size, precision.device) for _ in range(most - len(batches)))]


def _back_off(scaler: torch.amp.GradScaler, scale: float) -> None:
    """Make a scale smaller that was too large: the scaler itself knows only what overflowed in this rank's part of the model."""
    if scaler.is_enabled():
        scaler.load_state_dict({**scaler.state_dict(), "scale": scale * scaler.get_backoff_factor(), "_growth_tracker": 0})


def _summed(loss: Tensor, optimizer: torch.optim.Optimizer, precision: Precision) -> tuple[float, float]:
    """Leave the step's gradient, of all ranks, in the parameters; loss per supervised token, and the gradient's norm."""
    ranks = precision.ranks
    ranks.sum_gradients(trained_parameters(optimizer))  # before they are unscaled: what overflowed on one rank is infinite on all
    precision.scaler.unscale_(optimizer)
    norm = ranks.norm(trained_parameters(optimizer))
    loss_value, norm_value = torch.stack([loss, norm]).tolist()  # the step's only sync: it decides on the update, and both are logged
    (loss_sum,) = ranks.sum([loss_value])
    return loss_sum, norm_value

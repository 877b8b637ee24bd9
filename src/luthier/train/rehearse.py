"""The worst case before step 1: the largest micro batches, one of validation, a save; after it all is as it was (trap 32)."""

import functools
import shutil
import time
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch

from luthier.data.order import Indices
from luthier.data.store import Rows
from luthier.model.peak import peak_memory
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.batch import MicroBatch, micro_batches
from luthier.train.checkpoint import State
from luthier.train.loop import Loop
from luthier.train.optim import set_rate, trained_parameters
from luthier.train.passes import backward, forward
from luthier.train.step import evened, together


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """The rows whose micro batches are the largest."""

    training: Indices
    validation: Indices


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What the worst case took."""

    peak_bytes: int
    micro_batch_seconds: float
    validation_seconds: float
    save_seconds: float


def rehearse(loop: Loop, rows: Rows, worst: Worst) -> Rehearsal:
    """What a step's two largest micro batches, validation's largest and a save take beside the optimizer's state.

    Raises what torch does where memory is short (`luthier.model.peak`), RunError where the disk is. Nothing is learned: the update is by
    zero gradients at rate 0, and the optimizer's state is dropped. To be called before a checkpoint is loaded.
    """
    scratch = RunFolder(loop.folder.path / "rehearsal")
    marks = [time.perf_counter()]
    try:
        with peak_memory(loop.precision.device) as peak:
            for tried in (
                _update_by_nothing,
                functools.partial(_train, rows, worst.training),
                functools.partial(_validate, worst.validation),
            ):
                with together(loop.ranks):  # before ranks wait for each other in the next
                    tried(loop)
                marks.append(time.perf_counter())
            checkpoint.save(scratch, State(), loop.trained, loop.optimizer, keep=1, ranks=loop.ranks)
            marks.append(time.perf_counter())
    finally:
        loop.optimizer.zero_grad(set_to_none=True)
        loop.optimizer.state.clear()
        if loop.ranks.first:
            shutil.rmtree(scratch.path, ignore_errors=True)
    _, trained, validated, saved = (after - before for before, after in pairwise(marks))
    return Rehearsal(peak_bytes=peak.num_bytes, micro_batch_seconds=trained, validation_seconds=validated, save_seconds=saved)


def tell(loop: Loop, done: Rehearsal, planned_bytes: int) -> None:
    """Keep it beside the plan's number, in events.jsonl."""
    loop.folder.event("rehearsed", **asdict(done), planned_bytes=planned_bytes)
    gigabytes = f"{done.peak_bytes / 1e9:.2f} GB, planned {planned_bytes / 1e9:.2f} GB"
    loop.progress.say(f"tried the largest micro batch, validation and a save: {gigabytes}")


def _update_by_nothing(loop: Loop) -> None:
    """Let the optimizer make its state."""
    for parameter in trained_parameters(loop.optimizer):
        parameter.grad = torch.zeros_like(parameter)
    set_rate(loop.optimizer, 0.0)
    loop.optimizer.step()
    loop.optimizer.zero_grad(set_to_none=True)


def _train(rows: Rows, indices: Indices, loop: Loop) -> None:
    """The step's two largest micro batches: the first without gradients, the second beside those of the first. In a pipeline, where each
    stage has several at once, as many more."""
    loop.model.train()
    batches = _by_size(micro_batches(rows, indices, loop.micro_batch, loop.precision.device))[: 1 + loop.ranks.mesh.pipeline.size]
    num_targets = max(1, sum(batch.num_targets for batch in batches))
    backward(loop.model, evened(batches, loop.micro_batch, loop.precision), loop.precision, seeds=(0, 0), num_targets=num_targets)


def _validate(indices: Indices, loop: Loop) -> None:
    largest = _by_size(micro_batches(loop.validation_rows, indices, loop.micro_batch, loop.precision.device))[:1]
    forward(loop.model, evened(largest, loop.micro_batch, loop.precision), loop.precision)


def _by_size(batches: list[MicroBatch]) -> list[MicroBatch]:
    return sorted(batches, key=lambda batch: -batch.ids_BT.numel())

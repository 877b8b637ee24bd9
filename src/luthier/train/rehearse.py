"""The worst case before step 1: the heaviest micro batch, a validation batch and a save, after which nothing is as it was not (trap 32)."""

import shutil
import time
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch

from luthier.data.order import Indices, validated_together
from luthier.data.store import TokenRows
from luthier.model.dropout import draw
from luthier.model.peak import peak_memory
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.batch import micro_batches
from luthier.train.checkpoint import State
from luthier.train.loop import Loop
from luthier.train.objective import nll_sum
from luthier.train.optim import set_rate, trained_parameters


class TooMuchMemory(Exception):
    """The rehearsal was out of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What the worst case took."""

    peak_bytes: int
    micro_batch_seconds: float
    validation_seconds: float
    save_seconds: float


def rehearse(loop: Loop, rows: TokenRows, fullest: Indices) -> Rehearsal:
    """What the largest micro batch of a step's rows, the largest of validation and a save take; raises TooMuchMemory.

    Nothing is learned: gradients are zeroed before the update, its rate is 0, and the optimizer's state is dropped. To be called before a
    checkpoint is loaded.
    """
    scratch = RunFolder(loop.folder.path / "rehearsal")
    device = loop.precision.device
    marks = [time.perf_counter()]
    try:
        with peak_memory(device) as peak:
            _train(loop, rows, fullest)
            marks.append(time.perf_counter())
            _validate(loop)
            marks.append(time.perf_counter())
            checkpoint.save(scratch, State(), loop.model, loop.optimizer, keep=1)
            marks.append(time.perf_counter())
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TooMuchMemory(str(error).partition("\n")[0]) from error
    except RuntimeError as error:  # what torch makes of a failed malloc
        if "can't allocate memory" not in str(error):
            raise
        raise TooMuchMemory(str(error).partition("\n")[0]) from error
    finally:
        loop.optimizer.zero_grad(set_to_none=True)
        loop.optimizer.state.clear()
        shutil.rmtree(scratch.path, ignore_errors=True)
    trained, validated, saved = (after - before for before, after in pairwise(marks))
    return Rehearsal(peak_bytes=peak.num_bytes, micro_batch_seconds=trained, validation_seconds=validated, save_seconds=saved)


def tell(loop: Loop, done: Rehearsal, planned_bytes: int) -> None:
    """Keep it beside the plan's number, in events.jsonl."""
    loop.folder.event("rehearsed", **asdict(done), planned_bytes=planned_bytes)
    gigabytes = f"{done.peak_bytes / 1e9:.2f} GB, planned {planned_bytes / 1e9:.2f} GB"
    loop.progress.say(f"tried the largest micro batch, validation and a save: {gigabytes}")


def _train(loop: Loop, rows: TokenRows, fullest: Indices) -> None:
    """Forward, backward, and an update by nothing, which makes the optimizer's state."""
    largest = micro_batches(rows, fullest, loop.micro_batch, loop.precision.device)[0]
    loop.model.train()
    draw(loop.model, largest.keys_A, largest.needed_S, (0, 0))
    with loop.precision.autocast():
        loss = nll_sum(loop.model, largest) / largest.num_targets
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter in trained_parameters(loop.optimizer):
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
    set_rate(loop.optimizer, 0.0)
    loop.optimizer.step()


def _validate(loop: Loop) -> None:
    first = next(validated_together(loop.validation_rows), None)
    if first is None:
        return
    largest = micro_batches(loop.validation_rows, first, loop.micro_batch, loop.precision.device)[0]
    loop.model.eval()
    with torch.inference_mode(), loop.precision.autocast():
        nll_sum(loop.model, largest)
    loop.model.train()

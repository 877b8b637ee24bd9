"""The worst case before step 1: the largest micro batches, validation's, the longest answers, a save; then all is as it was (trap 32)."""

import functools
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import torch

from luthier.core import generation
from luthier.data.order import Indices
from luthier.data.store import Rows
from luthier.model.decode import active_adapter
from luthier.model.generate import Answer, written
from luthier.model.peak import peak_memory
from luthier.model.pipeline import as_one
from luthier.plan.asked import CHUNK, Asked, rows_at_once
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
    """The rows whose micro batches are the largest, and the answers that this rank writes."""

    training: Indices
    validation: Indices
    answers: Sequence[Asked] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What the worst case took."""

    peak_bytes: int
    micro_batch_seconds: float
    validation_seconds: float
    answers_seconds: float
    """Of those that were written, at most as many as at a validation or in a step; 0 where none are asked."""
    save_seconds: float


def rehearse(loop: Loop, rows: Rows, worst: Worst) -> Rehearsal:
    """What a step's two largest micro batches, validation's largest, the longest answers and a save take beside the optimizer's state.

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
                functools.partial(_answer, rows, worst.answers),
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
    _, trained, validated, answered, saved = (after - before for before, after in pairwise(marks))
    return Rehearsal(
        peak_bytes=peak.num_bytes,
        micro_batch_seconds=trained,
        validation_seconds=validated,
        answers_seconds=answered if worst.answers else 0.0,
        save_seconds=saved,
    )


def tell(loop: Loop, done: Rehearsal, planned_bytes: int) -> None:
    """Keep it beside the plan's number, in events.jsonl."""
    loop.folder.event("rehearsed", **asdict(done), planned_bytes=planned_bytes)
    gigabytes = f"{done.peak_bytes / 1e9:.2f} GB, planned {planned_bytes / 1e9:.2f} GB"
    answers = ", the longest answers" if done.answers_seconds else ""
    loop.progress.say(f"tried the largest micro batch, validation{answers} and a save: {gigabytes}")


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
    loop.optimizer.zero_grad(set_to_none=True)  # as after a step


def _validate(indices: Indices, loop: Loop) -> None:
    largest = _by_size(micro_batches(loop.validation_rows, indices, loop.micro_batch, loop.precision.device))[:1]
    forward(loop.model, evened(largest, loop.micro_batch, loop.precision), loop.precision)


def _answer(rows: Rows, answers: Sequence[Asked], loop: Loop) -> None:
    """As many of the longest as are written at once, each until the last prompt has been read, and so beside all others."""
    model = loop.placed.model
    with as_one(model):
        for asked in answers:
            requests = list(_longest(rows, asked, active_adapter(model)))
            passes = len(requests) * -(-len(requests[0].ids) // CHUNK)
            written(model, requests, look=loop.heart.again, over=functools.partial(_is_enough, passes))


def _is_enough(passes: int, number: int, answer: Answer) -> bool:
    return len(answer.tokens) > passes


def _longest(rows: Rows, asked: Asked, adapter: str) -> Iterator[generation.Asked]:
    """Prompts of ids that the model has, each in another order."""
    length = max(1, asked.longest - asked.most_tokens)
    for number in range(min(asked.rows, rows_at_once(asked.longest))):
        ids = np.resize(np.roll(rows[number % len(rows)].ids, -number), length)
        temperature = 1.0 if asked.drawn else 0.0
        sampling = generation.Sampling(max_new_tokens=asked.most_tokens, temperature=temperature, seed=number)
        yield generation.Asked(ids=tuple(ids.tolist()), sampling=sampling, adapter=adapter, tempered=asked.drawn)


def _by_size(batches: list[MicroBatch]) -> list[MicroBatch]:
    return sorted(batches, key=lambda batch: -batch.ids_BT.numel())

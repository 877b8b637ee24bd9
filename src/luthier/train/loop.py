"""The training loop: rate, step, record, validate, save, stop. Row order and dropout follow from seed and step."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from luthier.core.errors import NonFiniteError, RunError
from luthier.core.progress import Progress
from luthier.data.order import Indices
from luthier.data.store import TokenRows
from luthier.plan.steps import Steps
from luthier.recipe.schema import Recipe
from luthier.runs.store import RunFolder
from luthier.runs.workload import MicroBatchSize
from luthier.train import checkpoint
from luthier.train.ahead import Ahead
from luthier.train.checkpoint import Best, State
from luthier.train.clock import Clock
from luthier.train.optim import rate_at, set_rate
from luthier.train.record import Line, Stopwatch, of_step, of_validation
from luthier.train.step import Precision, StepRecord, train_step
from luthier.train.validate import validation_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Everything that stays the same from the first step to the last."""

    recipe: Recipe
    steps: Steps
    batches: Ahead
    validation_rows: TokenRows
    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    micro_batch: MicroBatchSize
    patience: int
    folder: RunFolder
    progress: Progress
    score: Callable[[nn.Module], Mapping[str, float]]
    origins: Callable[[Sequence[int]], list[str]]
    """Where training rows come from, for the report of a step that failed."""
    clock: Clock


def fit(loop: Loop, state: State) -> State:
    """Train from `state` to the last step, or until validation no longer improves."""
    loop.model.train()
    with loop.progress.task("training", loop.steps.total) as advance:
        while state.step < loop.steps.total and not state.stopped_early:
            state = replace(state, step=state.step + 1)
            line = _take_step(loop, state.step)
            if state.step in loop.steps.evaluations:
                state = _evaluate(loop, state)
            if state.step in loop.steps.saves or state.stopped_early or (state.best and state.best.step == state.step):
                _save(loop, state)
            advance(state.step, f"loss {line.loss:.4f}, {line.tokens_per_second:,.0f} tokens/s")
    return state


def _take_step(loop: Loop, step: int) -> Line:
    """One update and its line in metrics.jsonl; raises NonFiniteError, weights and optimizer untouched, where it could not be made."""
    training, seed = loop.recipe.training, loop.recipe.seed
    watch = Stopwatch(loop.precision.device)
    rate = rate_at(step, loop.steps, training)
    set_rate(loop.optimizer, rate)
    rows, batches = loop.batches.take(step)
    data_seconds = watch.seconds
    done = train_step(loop.model, loop.optimizer, batches, precision=loop.precision, max_norm=training.max_grad_norm, seeds=(seed, step))
    line = of_step(done, watch, step=step, epoch=loop.steps.epoch_at(step), rate=rate, data_seconds=data_seconds)
    loop.folder.metric(asdict(line))
    if done.num_overflows:
        loop.folder.event("overflow", step=step, times=done.num_overflows, scale=loop.precision.scaler.get_scale())
    if not done.finite:
        raise _not_finite(loop, step, rows, done)
    loop.clock.note("step", step, line.seconds)
    return line


def _evaluate(loop: Loop, state: State) -> State:
    """Validate, and judge whether this is a new best or the time to stop."""
    watch = Stopwatch(loop.precision.device)
    found = validation_loss(loop.model, loop.validation_rows, loop.micro_batch, loop.precision)
    loop.folder.metric(asdict(of_validation(found, watch, step=state.step, epoch=loop.steps.epoch_at(state.step))))
    value = _judged(loop, state.step, found.loss)
    loop.clock.note("validation", state.step, watch.seconds)
    checkpoints = loop.recipe.checkpoints
    sign = 1 if checkpoints.best_by == "loss" else -1  # a loss is better when lower, a metric when higher
    best = state.best is None or sign * (state.best.value - value) > checkpoints.early_stopping_min_delta
    loop.progress.say(f"step {state.step}: validation loss {found.loss:.4f}" + (", the best so far" if best else ""))
    if best:
        return replace(state, best=Best(step=state.step, value=value), validations_since_best=0)
    waited = state.validations_since_best + 1
    if waited < loop.patience:
        return replace(state, validations_since_best=waited)
    reason = f"{waited} validations without a new best"
    loop.folder.event("stopped", step=state.step, reason=reason)
    loop.progress.say(f"stopped at step {state.step} of {loop.steps.total}: {reason}")
    return replace(state, validations_since_best=waited, stopped_early=True)


def _judged(loop: Loop, step: int, loss: float) -> float:
    """The number that decides which checkpoint is best: the validation loss, or the task's metric."""
    by = loop.recipe.checkpoints.best_by
    if not math.isfinite(loss):
        loop.folder.event("nonfinite", step=step, of="validation")
        raise NonFiniteError(f"the validation loss is {loss}", where=f"step {step}", change="lower training.learning_rate")
    if by == "loss":
        return loss
    loop.model.eval()
    scores = loop.score(loop.model)
    loop.model.train()
    loop.folder.event("scored", step=step, scores=dict(scores))
    if by not in scores:
        raise RunError(f"checkpoints.best_by {by!r} was not measured", where=f"step {step}", change=f"measured were {', '.join(scores)}")
    return scores[by]


def _save(loop: Loop, state: State) -> None:
    began = time.perf_counter()
    state = replace(state, scaler=loop.precision.scaler.state_dict())
    path = checkpoint.save(loop.folder, state, loop.model, loop.optimizer, keep=loop.recipe.checkpoints.keep)
    best = state.best is not None and state.best.step == state.step
    seconds = time.perf_counter() - began
    loop.folder.event("saved", step=state.step, checkpoint=path.name, best=best, seconds=seconds)
    loop.clock.note("save", state.step, seconds)


def _not_finite(loop: Loop, step: int, rows: Indices, done: StepRecord) -> NonFiniteError:
    indices = [int(index) for index in rows]
    origins = loop.origins(indices)
    loop.folder.event("nonfinite", step=step, of="train", loss=done.loss, grad_norm=done.grad_norm, rows=indices, origins=origins)
    return NonFiniteError(
        f"loss {done.loss}, gradient norm {done.grad_norm}: the update was not applied",
        where=f"step {step}, rows {_origins_text(origins)}",
        change="look at these rows; lower training.learning_rate; or set model.dtype: float32 to see whether it is the precision",
    )


def _origins_text(origins: Sequence[str]) -> str:
    """`a.jsonl:3, a.jsonl:9 …`: the first few, for an error."""
    return ", ".join(origins[:8]) + (" …" if len(origins) > 8 else "")

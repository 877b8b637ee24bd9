"""The training loop: rate, step, record, validate, save, stop. Row order and dropout follow from seed and step."""

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import nn

from luthier.core.errors import NonFiniteError, RunError
from luthier.core.files import DiskError
from luthier.core.progress import Progress
from luthier.core.signals import Asked, Interrupted, ending_in_order
from luthier.data.order import Indices
from luthier.data.store import TokenRows
from luthier.model.adapt import base_of
from luthier.model.pipeline import as_one
from luthier.model.place import Placed, Trained
from luthier.model.shard import evaluating
from luthier.plan.steps import Steps
from luthier.recipe.schema import Recipe
from luthier.runs import control
from luthier.runs.control import Wish
from luthier.runs.heartbeat import Heart
from luthier.runs.store import RunFolder
from luthier.runs.workload import MicroBatchSize
from luthier.train import checkpoint
from luthier.train.checkpoint import Best, State
from luthier.train.clock import Clock
from luthier.train.host import release_freed_memory
from luthier.train.optim import rate_at, set_rate
from luthier.train.passes import Stopped
from luthier.train.precision import Precision
from luthier.train.ranks import Ranks
from luthier.train.record import Line, Stopwatch, Tally, of_step, of_validation
from luthier.train.source import Batches
from luthier.train.step import StepRecord, TooLarge, evened, together, train_step
from luthier.train.validate import validation_loss
from luthier.watch import rows
from luthier.watch.busy import Busy, Unseen

MOST_SKIPPED = 3
"""Steps in a row that may be skipped because they were not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Everything that stays the same from the first step to the last."""

    recipe: Recipe
    steps: Steps
    until: int
    """The step after which it saves and leaves off: the last, or the one that was asked for (`luthier.runs.control`)."""
    batches: Batches
    validation_rows: TokenRows
    placed: Placed
    optimizer: torch.optim.Optimizer
    precision: Precision
    micro_batch: MicroBatchSize
    patience: int
    folder: RunFolder
    progress: Progress
    score: Callable[[nn.Module, int], Mapping[str, float]]
    """Of a model after a step."""
    origins: Callable[[Sequence[int]], list[str]]
    """Where training rows come from, for the report of a step that failed."""
    heart: Heart
    asked: Asked
    """Whether a signal has come."""
    clock: Clock
    tally: Tally
    busy: Busy = field(default_factory=Unseen)
    """How busy the GPU is."""

    @property
    def model(self) -> nn.Module:
        """What is trained, as far as it is here."""
        return self.placed.model

    @property
    def trained(self) -> Trained:
        """What the optimizer updates, by name."""
        return self.placed.trained

    @property
    def ranks(self) -> Ranks:
        """Those that train together."""
        return self.precision.ranks


def fit(loop: Loop, state: State) -> State:
    """Train from `state` to the last step, to the one it was asked to leave off after, or until validation no longer improves.

    Raises Interrupted where a signal or the control file asks to end, TooLarge where memory is short: with all that was learned saved.
    """
    loop.model.train()
    release_freed_memory()  # the rehearsal's; the same below: what is left there is of other sizes than a step's tensors
    with ending_in_order(loop.asked), loop.progress.task("training", loop.steps.total) as advance:
        saved = _Saved(of=state)
        if state.step:
            advance(state.step, "")  # from where it goes on, so that what is left is told by this process's pace
        try:
            while True:
                if state.step in loop.steps.evaluations and state.validated < state.step:
                    state = _evaluate(loop, state)
                wish = _wish(loop)
                if _is_save_due(loop, state, saved, asked=wish == "save"):
                    saved = _save(loop, state, saved)
                later = wish == "save" and (not state.step or state.skipped)  # there is nothing to save yet
                if wish != "nothing" and loop.ranks.first and not later:
                    control.obeyed(loop.folder, wish)
                if state.step >= loop.until or state.stopped_early:
                    return state
                if wish == "stop":
                    loop.asked.number = signal.SIGTERM
                    raise Stopped
                state, line = _take_step(loop, state)
                advance(state.step, f"{loop.batches.reached(line.loss)}, {line.tokens_per_second:,.0f} tokens/s")
        except (Stopped, TooLarge) as broken_off:
            loop.optimizer.zero_grad(set_to_none=True)
            if state.step > saved.of.step:
                if isinstance(broken_off, Stopped):
                    loop.progress.say(f"asked to stop: saving step {state.step} (Ctrl-C now ends at once, without it)")
                _save(loop, state, saved)
            (number,) = loop.ranks.largest([loop.asked.number])  # and so no rank leaves before the first has saved
            if isinstance(broken_off, TooLarge) and not number:
                raise
            ended = Interrupted(int(number))
            loop.folder.event("interrupted", step=state.step, signal=ended.signal.name)
            raise ended from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """The newest checkpoint of this process, or the one that it began with."""

    of: State
    at: float = field(default_factory=time.monotonic)


def _wish(loop: Loop) -> Wish:
    """What the control file asks, as rank 0 has read it: one thing, after the same step, for all."""
    (number,) = loop.ranks.largest([control.WISHES.index(control.wished(loop.folder)) if loop.ranks.first else 0])
    return control.WISHES[int(number)]


def _is_save_due(loop: Loop, state: State, saved: _Saved, *, asked: bool) -> bool:
    if (state.step, state.validated) == (saved.of.step, saved.of.validated):
        return False
    minutes = loop.recipe.checkpoints.save_minutes
    if state.stopped_early or state.step == loop.until or (state.best is not None and state.best.step == state.step):
        return True
    due = asked or state.step in loop.steps.saves
    if minutes != "off" and not due:
        due = loop.ranks.same(time.monotonic() - saved.at >= 60 * minutes)  # by the clock of one, for all of them save
    return due and not state.skipped  # what was skipped changed nothing, and would take the place of what may be gone back to


def _take_step(loop: Loop, state: State) -> tuple[State, Line]:
    """One update and its line in metrics.jsonl; where it is not finite, weights and optimizer stay as they are."""
    training, seed, step = loop.recipe.training, loop.recipe.seed, state.step + 1
    loop.heart.beat("computing", step)
    watch = Stopwatch(loop.precision.device, loop.busy)
    rate = rate_at(step, loop.steps, training)
    set_rate(loop.optimizer, rate)
    with together(loop.ranks):
        rows, batches = loop.batches.take(step)
    batches = evened(batches, loop.micro_batch, loop.precision)
    data_seconds = watch.seconds
    done = train_step(
        loop.model,
        loop.optimizer,
        batches,
        precision=loop.precision,
        max_norm=training.max_grad_norm,
        seeds=(seed, step),
    )
    line = of_step(done, watch, step=step, epoch=loop.steps.epoch_at(step), rate=rate, data_seconds=data_seconds)
    loop.folder.metric({**asdict(line), **loop.batches.told()})
    loop.tally.note(line)
    if done.num_overflows:
        loop.folder.event("overflow", step=step, times=done.num_overflows, scale=loop.precision.scaler.get_scale())
    if not done.finite:
        return _skip(loop, replace(state, step=step, skipped=state.skipped + 1), _not_finite(loop, step, rows, done)), line
    loop.clock.note("step", step, line.seconds)
    return replace(state, step=step, skipped=0), line


def _skip(loop: Loop, state: State, error: NonFiniteError) -> State:
    """Go on without the step's rows, or after too many such steps from a checkpoint's weights; raises the error where neither helps."""
    if loop.recipe.training.on_nonfinite == "stop":
        raise error
    if state.skipped <= MOST_SKIPPED:
        loop.progress.say(f"skipped: {error}")
        return state
    parts = (loop.folder, loop.trained, loop.optimizer, loop.progress)
    earlier = State() if state.rolled_back else checkpoint.restore(*parts, before_skips=True, ranks=loop.ranks)
    if not earlier.step:
        raise error
    loop.folder.event("rolled_back", step=state.step, to=earlier.step)
    loop.progress.say(f"{state.skipped} steps in a row were not finite: going on with the weights of step {earlier.step}")
    return replace(state, skipped=0, rolled_back=True)


def _evaluate(loop: Loop, state: State) -> State:
    """Validate, and judge whether this is a new best or the time to stop."""
    watch, state = Stopwatch(loop.precision.device, loop.busy), replace(state, validated=state.step)
    loop.heart.beat("validating", state.step)
    release_freed_memory()
    found = validation_loss(loop.model, loop.validation_rows, loop.micro_batch, loop.precision)
    release_freed_memory()
    line = of_validation(found, watch, step=state.step, epoch=loop.steps.epoch_at(state.step))
    if not loop.folder.read_only:
        rows.keep(loop.folder, state.step, rows.Rows(losses=found.losses_R, tokens=found.targets_R))
    if not math.isfinite(found.loss):
        loop.folder.metric(asdict(line))
        loop.folder.event("nonfinite", step=state.step, of="validation")
        raise NonFiniteError(f"the validation loss is {found.loss}", where=f"step {state.step}", change="lower training.learning_rate")
    value = found.loss if loop.recipe.best_by == "loss" else _scored(loop, state.step)
    loop.folder.metric(asdict(line))
    loop.clock.note("validation", state.step, watch.seconds)
    checkpoints = loop.recipe.checkpoints
    sign = 1 if loop.recipe.best_by == "loss" else -1  # a loss is better when lower, a metric when higher
    best = state.best is None or sign * (state.best.value - value) > checkpoints.early_stopping_min_delta
    by = "" if loop.recipe.best_by == "loss" else f", {loop.recipe.best_by} {value:.4f}"
    loop.progress.say(f"step {state.step}: validation loss {found.loss:.4f}{by}" + (", the best so far" if best else ""))
    if best:
        return replace(state, best=Best(step=state.step, value=value), validations_since_best=0)
    waited = state.validations_since_best + 1
    if waited < loop.patience:
        return replace(state, validations_since_best=waited)
    reason = f"{waited} validations without a new best"
    loop.folder.event("stopped", step=state.step, reason=reason)
    loop.progress.say(f"stopped at step {state.step} of {loop.steps.total}: {reason}")
    return replace(state, validations_since_best=waited, stopped_early=True)


def _scored(loop: Loop, step: int) -> float:
    """The task's metric that decides which checkpoint is best."""
    by = loop.recipe.best_by
    loop.heart.beat("scoring", step)
    with evaluating(loop.model):
        scores = loop.ranks.same(_scores(loop, step)) if loop.ranks.each_whole else _together(loop, step)
    release_freed_memory()
    if not scores:
        raise Stopped
    loop.folder.event("scored", step=step, scores=scores)
    if by not in scores:
        raise RunError(f"checkpoints.best_by {by!r} was not measured", where=f"step {step}", change=f"measured were {', '.join(scores)}")
    return scores[by]


def _together(loop: Loop, step: int) -> Mapping[str, float]:
    """What the task measured where ranks divide the model: all of them answer the same rows. Nothing where a signal came to one."""

    def look(*_: object) -> None:
        loop.heart.again()
        if any(loop.ranks.any([bool(loop.asked)])):
            raise Stopped  # all of them, before the same forward pass

    hook = base_of(loop.placed.model).register_forward_pre_hook(look)
    try:
        with as_one(loop.model):
            return loop.score(loop.model, step)
    except Stopped:
        return {}
    finally:
        hook.remove()


def _scores(loop: Loop, step: int) -> dict[str, float]:
    """What the task measured, of which each rank answers a share; nothing where a signal came to one, for answers may take minutes: the
    validation is owed then."""
    if any(loop.ranks.any([bool(loop.asked)])):
        return {}
    try:
        return dict(loop.score(loop.model, step))
    except Interrupted as ended:
        loop.asked.number = loop.asked.number or ended.signal
        return {}


def _save(loop: Loop, state: State, saved: _Saved) -> _Saved:
    """Write a checkpoint; where the disk does not take it and the recipe says `continue`, warn and wait for the next."""
    began = time.perf_counter()
    loop.heart.beat("saving", state.step)
    state = replace(state, scaler=loop.precision.scaler.state_dict())
    try:
        keep = loop.recipe.checkpoints.keep
        path = checkpoint.save(loop.folder, state, loop.trained, loop.optimizer, keep=keep, ranks=loop.ranks)
    except DiskError as error:
        if loop.recipe.checkpoints.on_failed_save == "stop":
            raise
        loop.folder.event("finding", code="save-failed", severity="warn", message=str(error), step=state.step)
        loop.progress.say(f"warn: {error} [save-failed]")
        return _Saved(of=saved.of)
    release_freed_memory()
    best = state.best is not None and state.best.step == state.step
    seconds = time.perf_counter() - began
    loop.folder.event("saved", step=state.step, checkpoint=path.name, best=best, seconds=seconds)
    loop.clock.note("save", state.step, seconds)
    return _Saved(of=state)


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

"""A training job, from the recipe to the final adapter: set up, resume, train, keep the best."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import luthier.model  # noqa: F401  # isort: skip  # before PEFT: it imports bitsandbytes in silence, and without code of the hub
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from luthier.core import files, jsonl
from luthier.core.errors import LuthierError, PlanRefused, RunError
from luthier.core.progress import Progress
from luthier.core.signals import Asked, Interrupted
from luthier.data.store import Prepared
from luthier.data.survey import PreparedWorkload
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.adapt import adapted_parts, add_lora, missed_experts
from luthier.model.fuse import fuse
from luthier.model.load import DTYPES, load_model, resolve_device
from luthier.model.peak import is_out_of_memory, used_memory
from luthier.model.pipeline import elsewhere
from luthier.model.place import place
from luthier.model.share import base_for
from luthier.model.tensor import as_if_whole, numbers_of_all
from luthier.plan.asked import asked_here
from luthier.plan.plan import Plan, begun
from luthier.plan.setup import SAID
from luthier.plan.speed import stages
from luthier.plan.weights import Stage
from luthier.recipe.schema import Recipe
from luthier.runs import control
from luthier.runs.heartbeat import Heart, Unheard
from luthier.runs.rates import threads_here
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.card import Origin
from luthier.train.checkpoint import Best, State
from luthier.train.clock import Clock
from luthier.train.contents import load_weights
from luthier.train.final import save_final
from luthier.train.forecast import schedule_of
from luthier.train.host import prepare_host, release_freed_memory
from luthier.train.loop import Loop, fit
from luthier.train.optim import make_optimizer
from luthier.train.precision import Precision
from luthier.train.ranks import ALONE, Ranks
from luthier.train.record import Tally, device_use
from luthier.train.rehearse import Worst, rehearse, tell
from luthier.train.source import Ready, Source
from luthier.train.step import TooLarge, together
from luthier.watch.failures import explain
from luthier.watch.rules import found_in
from luthier.watch.rules.case import look
from luthier.watch.series import read


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """A plan with all that it needs to be trained here and now. `score` measures the metrics that `best_by` may name after a step.

    Of several ranks only the first has a folder that it writes into: the others' is `read_only`.
    """

    plan: Plan
    prepared: Prepared
    source: Source
    tokenizer: ChatTokenizer
    folder: RunFolder
    progress: Progress
    score: Callable[[nn.Module, int], Mapping[str, float]]
    ranks: Ranks = ALONE
    heart: Heart = field(default_factory=Unheard)
    asked: Asked = field(default_factory=Asked)
    """Whether a signal has come."""

    @property
    def recipe(self) -> Recipe:
        """What is trained."""
        return self.plan.facts.task.recipe

    def stops(self) -> bool:
        """Whether a signal has come; whoever asks says that the rank lives."""
        self.heart.again()
        return bool(self.asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """How a run ended: its last step, the step whose weights are in `adapter/`, the best validation, and the plan it followed.

    One that was asked to go so far and no further has no `adapter/` yet, and both steps are the one it is saved after.
    """

    last_step: int
    final_step: int
    best: Best | None
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    """A plan that was tried, and was out of memory."""

    plan: Plan
    reason: str
    used_bytes: int


def train(job: TrainingJob) -> TrainingResult:
    """Train to the end, from the newest whole checkpoint where there is one, and leave the adapter in the run folder.

    A signal raises Interrupted, once a checkpoint is saved where training has begun. Raises NonFiniteError where loss or gradient is not a
    number, RecipeError and PlanRefused for what cannot be, ModelError for the base.
    """
    job.asked.number = 0  # of an earlier call, which has obeyed
    try:
        return _trained(job)
    except Exception as error:
        if not isinstance(error, LuthierError) and (known := explain(error)) != "unknown":
            job.folder.event("finding", **known.to_json())
        raise
    finally:  # the model is gone by now: what comes after training is not counted on top of it
        gc.collect()
        release_freed_memory()


def _trained(job: TrainingJob) -> TrainingResult:
    job = _continued(job)
    while isinstance(ended := _tried(job), _Failed):
        gc.collect()
        release_freed_memory()
        job = _smaller(job, ended)
    return ended


def _continued(job: TrainingJob) -> TrainingJob:
    """The job with the sizes that its run began with, if it has: the order of its sums follows from them."""
    kept, fitting = begun(job.folder), job.plan.setup.sizes
    if kept == "none":
        return job
    if kept != fitting:
        job.folder.event("sizes_kept", kept=kept.to_json(), fitting_now=fitting.to_json())
        job.progress.say("micro batch and gradient checkpointing stay as they were when the run began, though the free memory has changed")
    return replace(job, plan=job.plan.going_on(kept))


def _tried(job: TrainingJob) -> TrainingResult | _Failed:
    """The end of the run by this plan, or why there was not enough memory for it. What was loaded is gone by then."""
    plan = job.plan
    try:
        with together(job.ranks):
            ready = _set_up(job)
        loop, plan = ready
        _rehearse(job, loop, plan)
        return _ended(job, loop, plan)
    except (MemoryError, OSError, RuntimeError) as error:
        known_to_all = isinstance(error, TooLarge) or job.ranks.size == 1
        if not (known_to_all and is_out_of_memory(error)):
            raise
        return _Failed(plan=plan, reason=str(error).partition("\n")[0], used_bytes=used_memory(resolve_device()))


def _smaller(job: TrainingJob, failed: _Failed) -> TrainingJob:
    """The job with the next plan, for the same updates in less memory; raises PlanRefused, with what would fit, where none is left."""
    smaller, planned = failed.plan.after_failure(), failed.plan.chosen.memory
    sizes, following = failed.plan.setup.sizes, smaller.setup.sizes
    job.folder.event(
        "out_of_memory",
        tried=sizes.to_json(),
        next=following.to_json(),
        reason=failed.reason,
        planned_bytes=planned.peak_bytes,
        used_bytes=failed.used_bytes,
    )
    job.progress.say(
        f"out of memory with {sizes}: {failed.used_bytes / 1e9:.2f} GB were in use, {planned.peak_bytes / 1e9:.2f} GB planned "
        f"of {planned.device_bytes / 1e9:.2f} GB; trying {following}, which gives the same update"
    )
    return replace(job, plan=smaller)


def _rehearse(job: TrainingJob, loop: Loop, plan: Plan) -> None:
    """Run the worst case; what fits is announced."""
    job.heart.beat("rehearsing", 0)
    with together(job.ranks):
        done = rehearse(loop, job.source.rows, _worst(job, plan))
    _announce(job, plan, loop.precision.device)
    tell(loop, done, plan.chosen.memory.peak_bytes)


def _ended(job: TrainingJob, loop: Loop, plan: Plan) -> TrainingResult:
    """Train from the newest checkpoint to the end, and leave the adapter."""
    state = checkpoint.resume(job.folder, loop.trained, loop.optimizer, job.progress, ranks=loop.ranks)
    if state.step:
        loop.precision.scaler.load_state_dict(dict(state.scaler))
        job.folder.event("resumed", step=state.step)
        job.progress.say(f"resumed after step {state.step} of {plan.steps.total}")
    elif list(job.folder.checkpoints.glob("*.damaged")):
        job.progress.say("no whole checkpoint is left: training begins at step 1")
    with device_use(loop.precision.device) as busy:
        state = fit(replace(loop, busy=busy), state)
    if number := int(*job.ranks.largest([loop.asked.number])):  # it came with the last step
        raise Interrupted(number)
    if job.ranks.first and job.recipe.rl == "none":  # a step's time is else mostly that of drawing answers
        loop.clock.keep_rate()
    if state.step < plan.steps.total and not state.stopped_early:
        job.folder.event("paused", step=state.step)
        return TrainingResult(last_step=state.step, final_step=state.step, best=state.best, plan=plan)
    final_step = _take_best(loop, state) if plan.ending.best else state.step
    final: Literal["best", "last"] = "best" if state.best and final_step == state.best.step else "last"
    origin = Origin(recipe=job.recipe, step=final_step, final=final, data_hash=job.prepared.summary.hash)
    job.heart.beat("saving", state.step)
    save_final(loop.placed, job.tokenizer, job.folder, origin, loop.ranks)
    if job.ranks.first:
        _tell_findings(job)
    job.folder.event("finished", step=state.step, final=final, final_step=final_step)
    return TrainingResult(last_step=state.step, final_step=final_step, best=state.best, plan=plan)


def _tell_findings(job: TrainingJob) -> None:
    """Say what is found of the run, and keep it with its events: each code once, however often the run is ended."""
    events = jsonl.salvage(job.folder.events).records
    told = {event.get("code") for event in events if event.get("event") == "finding"}
    for finding in found_in(look(job.folder, job.recipe, read(job.folder.metrics), events)):
        job.progress.say(f"{finding.severity}: {finding.message} [{finding.code}]")
        if finding.code not in told:
            job.folder.event("finding", **finding.to_json())


def _set_up(job: TrainingJob) -> tuple[Loop, Plan]:
    """The loop for a plan, and the plan as it is once the model shows how it can be computed."""
    job.heart.beat("loading", 0)
    recipe, plan = job.recipe, job.plan
    device = resolve_device()
    if device.type != plan.setup.device:
        what = f"the plan is for {plan.facts.task.place.device.name}, and torch {torch.__version__} sees only a {device.type} here"
        raise PlanRefused(what, change="install torch's CUDA build; or hide the GPU from both: CUDA_VISIBLE_DEVICES= luthier train …")
    prepare_host(device)
    dtype = DTYPES[plan.setup.dtype]
    stage = stages(plan.facts.task.shape, plan.setup, plan.chosen.survey)[job.ranks.mesh.pipeline.index]
    with together(job.ranks):  # before what they do as one
        placed = place(_trainable(job, _base(job, device, stage)), plan.setup.layout, job.ranks.mesh, stage)
    model = placed.model
    release_freed_memory()  # what loading left
    pack = recipe.data.packing != "off" and recipe.model.attention == "auto"
    fusion = fuse(model, pack=pack, longest=plan.facts.task.workload.longest)
    if fusion.engine != plan.setup.engine:
        planned, plan = plan, plan.with_engine(fusion.engine)
        job.progress.say(f"planned for {planned.setup.engine} layers, and again for {fusion.engine}: {fusion}")
        if plan.setup.checkpoint_activations != planned.setup.checkpoint_activations:  # which must be switched on before the adapter
            return _set_up(replace(job, plan=plan))
    job.folder.event("engine", layers=fusion.num_layers, adapters=fusion.num_linear, reasons=fusion.reasons)
    job.progress.say(f"engine: {fusion}")

    precision = Precision.of(dtype, device, replace(job.ranks, stop=job.stops, pieces=placed.pieces))
    ready = Ready(placed=placed, precision=precision, micro_batch=plan.setup.micro_batch, steps=plan.steps)
    loop = Loop(
        recipe=recipe,
        steps=plan.steps,
        until=min(plan.steps.total, job.ranks.same(control.until(job.folder) if job.ranks.first else 0)),
        batches=job.source.batches(ready),
        validation_rows=job.prepared.rows("validation"),
        placed=placed,
        optimizer=make_optimizer(placed.trained, recipe.training),
        precision=precision,
        micro_batch=ready.micro_batch,
        patience=plan.ending.patience,
        folder=job.folder,
        progress=job.progress,
        score=job.score,
        origins=job.source.origins,
        heart=job.heart,
        asked=job.asked,
        clock=_clock(job, plan),
        tally=Tally(ranks=job.ranks, heart=job.heart, folder=job.folder),
    )
    return loop, plan


def _clock(job: TrainingJob, plan: Plan) -> Clock:
    return Clock(
        schedule=schedule_of(job.source.rows, plan.steps, job.recipe.seed, plan.time),
        planned=plan.time,
        here=plan.circumstances(threads_here(plan.facts.host)),
        folder=job.folder,
        progress=job.progress,
    )


def _worst(job: TrainingJob, plan: Plan) -> Worst:
    rows_per_step, size, replicas = plan.steps.global_batch_size, plan.setup.micro_batch, job.ranks.mesh.data.size
    validation = job.prepared.rows("validation")
    workload = PreparedWorkload(train=job.source.rows, validation=validation, seed=job.recipe.seed, global_batch_size=rows_per_step)
    answers = tuple(
        replace(asked, rows=asked.rows_of(plan.setup.layout), longest=min(asked.longest, plan.facts.task.shape.max_positions))
        for asked in asked_here(job.recipe, plan.chosen.survey)
    )
    return Worst(
        training=workload.heaviest_rows(size, rows_per_step, replicas),
        validation=workload.heaviest_validation(size, replicas),
        answers=answers,
    )


def _base(job: TrainingJob, device: torch.device, stage: Stage) -> PreTrainedModel:
    """The base, of each matrix of the stage this rank's part; on the device, but where replicas are to divide it: none has room for all."""
    recipe, setup = job.recipe, job.plan.setup
    dtype = torch.float32 if recipe.lora == "none" else DTYPES[setup.dtype]
    where = torch.device("cpu") if setup.layout.shard == "zero3" else device

    def load() -> PreTrainedModel:
        return load_model(recipe.model, dtype, where, job.ranks.mesh.tensor, lambda empty: elsewhere(empty, stage))

    stays = recipe.lora != "none" and job.ranks.size == 1  # ranks end with their run
    base = base_for((recipe.model, dtype, where), load) if stays else load()
    if recipe.lora == "none":
        job.folder.event("model", trained=numbers_of_all(base), modules=["all"])
    return base


def _trainable(job: TrainingJob, base: PreTrainedModel) -> PreTrainedModel | PeftModel:
    """The base, to be trained itself or with an adapter; says on what that is."""
    if (
        job.plan.setup.checkpoint_activations
    ):  # before the adapter, or PEFT does not let gradients into the first recomputed layer (trap 26)
        base.activation_checkpointing_enable({"use_reentrant": False})
    if job.recipe.lora == "none":
        return base
    with as_if_whole(base):
        model = add_lora(base, job.recipe.lora, job.recipe.seed)
        parts = adapted_parts(model)
    planned = {finding.code for finding in job.plan.findings}
    for finding in missed_experts(base, parts.parameters):
        if finding.code not in planned:  # which told it from the shape alone
            job.folder.event("finding", **finding.to_json())
            job.progress.say(finding.message)
    names = sorted({name.rpartition(".")[2] for name in parts.modules + parts.parameters})
    num_adapted = len(parts.modules) + len(parts.parameters)
    job.folder.event("model", trained=parts.num_trainable, adapted=num_adapted, modules=names)
    job.progress.say(f"adapter on {num_adapted} layers ({', '.join(names)}): {parts.num_trainable:,} numbers to train")
    return model


def _announce(job: TrainingJob, plan: Plan, device: torch.device) -> None:
    if job.ranks.first:
        files.write_json(job.folder.plan, plan.to_json())
    sizes = plan.setup.sizes.sealed()
    job.folder.event("started", steps=plan.steps.total, device=str(device), threads=torch.get_num_threads(), sizes=sizes)
    for item in plan.resolved:
        if item.why != SAID:
            job.progress.say(f"{item.path} = {item.value}: {item.why}")


def _take_best(loop: Loop, state: State) -> int:
    """Put the best checkpoint's weights into the model; the step they are of. Damaged, they give way to the last, which events say."""
    if state.best is None or state.best.step == state.step:
        return state.step
    folder = loop.folder.checkpoint(state.best.step)
    if damage := loop.ranks.same(_damage(folder) if loop.ranks.first else ""):
        loop.folder.event("damaged", checkpoint=folder.name, why=damage)
        loop.progress.say(f"the best checkpoint, {folder.name}, is damaged ({damage}): the last one becomes the adapter")
        return state.step
    load_weights(folder, loop.trained, loop.ranks)
    return state.best.step


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint; empty where nothing is."""
    try:
        checkpoint.verify(folder)
    except RunError as damage:
        return damage.what
    return ""

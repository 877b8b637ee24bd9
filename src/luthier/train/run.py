"""A training job, from the recipe to the final adapter: set up, resume, train, keep the best."""

import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from luthier.core import files
from luthier.core.errors import PlanRefused, RunError
from luthier.core.progress import Progress
from luthier.data.order import Indices, rows_of_step
from luthier.data.store import Prepared
from luthier.data.survey import PreparedWorkload
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.adapt import adapted_parts, add_lora, missed_experts
from luthier.model.fuse import fuse
from luthier.model.load import DTYPES, load_model, resolve_device
from luthier.model.peak import is_out_of_memory
from luthier.plan.plan import Plan, begun
from luthier.plan.setup import SAID
from luthier.recipe.schema import Recipe
from luthier.runs.rates import threads_here
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.ahead import Ahead
from luthier.train.batch import MicroBatch, micro_batches
from luthier.train.checkpoint import Best, State
from luthier.train.clock import Clock
from luthier.train.final import Origin, save_final
from luthier.train.forecast import schedule_of
from luthier.train.host import prepare_host, release_freed_memory
from luthier.train.loop import Loop, fit
from luthier.train.optim import make_optimizer
from luthier.train.rehearse import Worst, rehearse, tell
from luthier.train.step import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """A plan with all that it needs to be trained here and now. `score` measures the metrics that `best_by` may name."""

    plan: Plan
    prepared: Prepared
    tokenizer: ChatTokenizer
    folder: RunFolder
    progress: Progress
    score: Callable[[nn.Module], Mapping[str, float]]

    @property
    def recipe(self) -> Recipe:
        """What is trained."""
        return self.plan.facts.task.recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """How a run ended: its last step, the step whose weights are in `adapter/`, the best validation, and the plan it followed."""

    last_step: int
    final_step: int
    best: Best | None
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    """A plan that was tried, and was out of memory."""

    plan: Plan
    reason: str


def train(job: TrainingJob) -> TrainingResult:
    """Train to the end, from the newest whole checkpoint where there is one, and leave the adapter in the run folder.

    Raises NonFiniteError where loss or gradient is not a number, RecipeError and PlanRefused for what cannot be, ModelError for the base.
    """
    try:
        return _trained(job)
    finally:  # the model is gone by now: what comes after training is not counted on top of it
        gc.collect()
        release_freed_memory()


def _trained(job: TrainingJob) -> TrainingResult:
    loop, plan = _ready(_continued(job))
    state = checkpoint.resume(job.folder, loop.model, loop.optimizer)
    if state.step:
        loop.precision.scaler.load_state_dict(dict(state.scaler))
        job.folder.event("resumed", step=state.step)
        job.progress.say(f"resumed after step {state.step} of {plan.steps.total}")
    state = fit(loop, state)
    loop.clock.keep_rate()
    final_step = _take_best(loop, state) if plan.ending.best else state.step
    final: Literal["best", "last"] = "best" if state.best and final_step == state.best.step else "last"
    origin = Origin(recipe=job.recipe, step=final_step, final=final, data_hash=job.prepared.summary.hash)
    save_final(loop.model, job.tokenizer, job.folder, origin)
    job.folder.event("finished", step=state.step, final=final, final_step=final_step)
    return TrainingResult(last_step=state.step, final_step=final_step, best=state.best, plan=plan)


def _continued(job: TrainingJob) -> TrainingJob:
    """The job with the sizes that its run began with, if it has: the order of its sums follows from them."""
    kept, fitting = begun(job.folder), job.plan.setup.sizes
    if kept == "none":
        return job
    if kept != fitting:
        job.folder.event("sizes_kept", kept=kept.to_json(), fitting_now=fitting.to_json())
        job.progress.say("micro batch and gradient checkpointing stay as they were when the run began, though the free memory has changed")
    return replace(job, plan=job.plan.going_on(kept))


def _ready(job: TrainingJob) -> tuple[Loop, Plan]:
    """The loop of the first plan whose worst case was tried and fits; raises PlanRefused, with what would fit, where none is left."""
    while True:
        tried = _tried(job)
        if not isinstance(tried, _Failed):
            return tried
        gc.collect()
        release_freed_memory()
        smaller = tried.plan.after_failure()
        sizes, following = tried.plan.setup.sizes, smaller.setup.sizes
        job.folder.event("out_of_memory", tried=sizes.to_json(), next=following.to_json(), reason=tried.reason)
        job.progress.say(f"out of memory with {sizes}: trying {following}, which gives the same update")
        job = replace(job, plan=smaller)


def _tried(job: TrainingJob) -> tuple[Loop, Plan] | _Failed:
    """The loop and its plan once its worst case has been run, or why there was not enough memory. What was loaded is gone by then."""
    plan = job.plan
    try:
        loop, plan = _set_up(job)
        done = rehearse(loop, job.prepared.rows("train"), _worst(job, plan))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _Failed(plan=plan, reason=str(error).partition("\n")[0])
    _announce(job, plan, loop.precision.device)
    tell(loop, done, plan.chosen.memory.peak_bytes)
    return loop, plan


def _set_up(job: TrainingJob) -> tuple[Loop, Plan]:
    """The loop for a plan, and the plan as it is once the model shows how it can be computed."""
    recipe, plan = job.recipe, job.plan
    rows, validation_rows = job.prepared.rows("train"), job.prepared.rows("validation")
    device = resolve_device()
    if device.type != plan.setup.device:
        what = f"the plan is for {plan.facts.task.place.device.name}, and torch {torch.__version__} sees only a {device.type} here"
        raise PlanRefused(what, change="install torch's CUDA build; or hide the GPU from both: CUDA_VISIBLE_DEVICES= luthier train …")
    prepare_host(device)
    dtype = DTYPES[plan.setup.dtype]
    base = load_model(recipe.model, torch.float32 if recipe.lora == "none" else dtype, device)
    model = _trainable(job, base, plan.setup.checkpoint_activations)
    pack = recipe.data.packing != "off" and recipe.model.attention == "auto"
    fusion = fuse(model, pack=pack, longest=plan.facts.task.workload.longest)
    if fusion.engine != plan.setup.engine:
        planned, plan = plan, plan.with_engine(fusion.engine)
        job.progress.say(f"planned for {planned.setup.engine} layers, and again for {fusion.engine}: {fusion}")
        if plan.setup.checkpoint_activations != planned.setup.checkpoint_activations:  # which must be switched on before the adapter
            return _set_up(replace(job, plan=plan))
    job.folder.event("engine", layers=fusion.num_layers, adapters=fusion.num_linear, reasons=fusion.reasons)
    job.progress.say(f"engine: {fusion}")
    micro_batch = plan.setup.micro_batch

    def batches_of(step: int) -> tuple[Indices, list[MicroBatch]]:
        taken = rows_of_step(step, plan.steps.global_batch_size, recipe.seed, rows)
        return taken, micro_batches(rows, taken, micro_batch, device)

    loop = Loop(
        recipe=recipe,
        steps=plan.steps,
        batches=Ahead(make=batches_of, last=plan.steps.total),
        validation_rows=validation_rows,
        model=model,
        optimizer=make_optimizer(model, recipe.training),
        precision=Precision.of(dtype, device),
        micro_batch=micro_batch,
        patience=plan.ending.patience,
        folder=job.folder,
        progress=job.progress,
        score=job.score,
        origins=functools.partial(_origins, job.prepared),
        clock=Clock(
            schedule=schedule_of(rows, plan.steps, recipe.seed, plan.time),
            planned=plan.time,
            here=plan.circumstances(threads_here(plan.facts.host)),
            folder=job.folder,
            progress=job.progress,
        ),
    )
    return loop, plan


def _worst(job: TrainingJob, plan: Plan) -> Worst:
    rows_per_step, size = plan.facts.task.rows_per_step, plan.setup.micro_batch
    workload = PreparedWorkload.of(job.prepared, job.recipe.seed, plan.steps.global_batch_size)
    return Worst(training=workload.heaviest_rows(size, rows_per_step), validation=workload.heaviest_validation(size))


def _trainable(job: TrainingJob, base: PreTrainedModel, checkpoint_activations: bool) -> PreTrainedModel | PeftModel:
    """The model with an adapter, or all of it; says what is trained."""
    if checkpoint_activations:  # before the adapter, or PEFT does not let gradients into the first recomputed layer (trap 26)
        base.activation_checkpointing_enable({"use_reentrant": False})
    if job.recipe.lora == "none":
        job.folder.event("model", trained=sum(weight.numel() for weight in base.parameters()), modules=["all"])
        return base
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
    files.write_json(job.folder.plan, plan.to_json())
    job.folder.event("started", steps=plan.steps.total, device=str(device), threads=torch.get_num_threads())
    for item in plan.resolved:
        if item.why != SAID:
            job.progress.say(f"{item.path} = {item.value}: {item.why}")


def _take_best(loop: Loop, state: State) -> int:
    """Put the best checkpoint's weights into the model; the step they are of. Damaged, they give way to the last, which events say."""
    if state.best is None or state.best.step == state.step:
        return state.step
    folder = loop.folder.checkpoint(state.best.step)
    try:
        checkpoint.verify(folder)
    except RunError as damage:
        loop.folder.event("damaged", checkpoint=folder.name, why=damage.what)
        loop.progress.say(f"the best checkpoint, {folder.name}, is damaged ({damage.what}): the last one becomes the adapter")
        return state.step
    checkpoint.load_weights(folder, loop.model)
    return state.best.step


def _origins(prepared: Prepared, rows: Sequence[int]) -> list[str]:
    examples, index = prepared.examples("train"), prepared.rows("train").example_index
    return [examples[int(index[row])].origin for row in rows]

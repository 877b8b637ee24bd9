"""A training job, from the recipe to the final adapter: set up, resume, train, keep the best."""

import functools
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from luthier.core import files
from luthier.core.errors import RunError
from luthier.core.progress import Progress
from luthier.data.pack import shared_share
from luthier.data.store import Prepared, TokenRows
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.adapt import adapted_parts, add_lora, missed_experts
from luthier.model.fuse import fuse
from luthier.model.head import PLAIN
from luthier.model.load import SAID, Resolved, load_model, resolve_device, resolve_dtype
from luthier.plan.steps import Steps
from luthier.recipe.schema import Recipe
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.ahead import Ahead
from luthier.train.batch import MicroBatch, micro_batches
from luthier.train.checkpoint import Best, State
from luthier.train.final import Origin, save_final
from luthier.train.host import prepare_host, release_freed_memory
from luthier.train.loop import Loop, fit
from luthier.train.optim import make_optimizer
from luthier.train.order import Indices, rows_of_step
from luthier.train.resolve import Ending, Sizes, Workload, resolve_ending, resolve_packing, resolve_sizes
from luthier.train.step import Precision

STEPS_SAMPLED = 8
"""Whose shared tokens decide between tree and bins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """A recipe with all that it needs to be trained here and now. `score` measures the metrics that `best_by` may name."""

    recipe: Recipe
    prepared: Prepared
    tokenizer: ChatTokenizer
    folder: RunFolder
    steps: Steps
    progress: Progress
    score: Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """How a run ended: its last step, the step whose weights are in `adapter/`, the best validation, and what each `auto` became."""

    last_step: int
    final_step: int
    best: Best | None
    resolved: tuple[Resolved, ...]


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
    loop, ending, resolved = _set_up(job)
    state = checkpoint.resume(job.folder, loop.model, loop.optimizer)
    if state.step:
        loop.precision.scaler.load_state_dict(dict(state.scaler))
        job.folder.event("resumed", step=state.step)
        job.progress.say(f"resumed after step {state.step} of {job.steps.total}")
    state = fit(loop, state)
    final_step = _take_best(loop, state) if ending.best else state.step
    final: Literal["best", "last"] = "best" if state.best and final_step == state.best.step else "last"
    origin = Origin(recipe=job.recipe, step=final_step, final=final, data_hash=job.prepared.summary.hash)
    save_final(loop.model, job.tokenizer, job.folder, origin)
    job.folder.event("finished", step=state.step, final=final, final_step=final_step)
    return TrainingResult(last_step=state.step, final_step=final_step, best=state.best, resolved=resolved)


def _set_up(job: TrainingJob) -> tuple[Loop, Ending, tuple[Resolved, ...]]:
    recipe = job.recipe
    rows, validation_rows = job.prepared.rows("train"), job.prepared.rows("validation")
    ending = resolve_ending(recipe.checkpoints, len(validation_rows))
    device = resolve_device()
    prepare_host(device)
    dtype, resolved_dtype = resolve_dtype(recipe.model.dtype, device)
    base = load_model(recipe.model, torch.float32 if recipe.lora == "none" else dtype, device)
    pack = recipe.data.packing != "off" and recipe.model.attention == "auto"
    workload = _workload(job, base, dtype, pack=pack)
    kept = _kept_sizes(job)
    sizes = _sizes(job, resolve_sizes(base, recipe.training, workload), kept)
    model = _trainable(job, base, sizes.checkpoint_activations)
    fusion = fuse(model, pack=pack, longest=workload.longest)
    if kept and (fusion.packs or kept.micro_batch.packing == "off"):
        sizes = sizes.packed(kept.micro_batch.packing, "as when the run began, because dropout in trees is another")
    else:
        sizes = sizes.packed(*resolve_packing(recipe, fusion, functools.partial(_shared_share, rows, job.steps, recipe.seed)))
    resolved = (
        Resolved(
            path="model.attention",
            value=str(base.config._attn_implementation),
            why=SAID if recipe.model.attention != "auto" else "the fastest for this model",
        ),
        *(resolved_dtype, *sizes.resolved, *ending.resolved),
    )
    job.folder.event("engine", layers=fusion.num_layers, adapters=fusion.num_linear, reasons=fusion.reasons)
    job.progress.say(f"engine: {fusion}")
    _announce(job, device, sizes, resolved)

    def batches_of(step: int) -> tuple[Indices, list[MicroBatch]]:
        taken = rows_of_step(step, job.steps, recipe.seed, rows)
        return taken, micro_batches(rows, taken, sizes.micro_batch, device)

    loop = Loop(
        recipe=recipe,
        steps=job.steps,
        batches=Ahead(make=batches_of, last=job.steps.total),
        validation_rows=validation_rows,
        model=model,
        optimizer=make_optimizer(model, recipe.training),
        precision=Precision.of(dtype, device),
        micro_batch=sizes.micro_batch,
        patience=ending.patience,
        folder=job.folder,
        progress=job.progress,
        score=job.score,
        origins=functools.partial(_origins, job.prepared),
    )
    return loop, ending, resolved


def _workload(job: TrainingJob, base: PreTrainedModel, dtype: torch.dtype, *, pack: bool) -> Workload:
    """What the memory of a step depends on."""
    rows, lora = job.prepared.rows("train"), job.recipe.lora
    known = base.config.model_type in PLAIN
    return Workload(
        longest=int(max(rows.lengths.max(), job.prepared.rows("validation").lengths.max(initial=0))),
        supervised_share=float(rows.num_supervised.sum() / rows.lengths.sum()),
        dtype=dtype,
        fused=known and pack and base.device.type == "cpu" and lora != "none" and not lora.use_dora,
        logits_in_chunks=known and lora != "none" and "lm_head" not in lora.target_modules,
    )


def _sizes(job: TrainingJob, fitting: Sizes, kept: Sizes | None) -> Sizes:
    """What fits the free memory or, once there are checkpoints, what did when the run began: the order of its sums follows from it."""
    if kept is None:
        return fitting
    if kept.to_json() != {**fitting.to_json(), "packing": kept.micro_batch.packing}:
        job.folder.event("sizes_kept", kept=kept.to_json(), fitting_now=fitting.to_json())
        job.progress.say("micro batch and gradient checkpointing stay as they were when the run began, though the free memory has changed")
    return kept


def _kept_sizes(job: TrainingJob) -> Sizes | None:
    """Of a run that has checkpoints."""
    if not (job.folder.plan.exists() and any(job.folder.checkpoints.glob("step-*"))):
        return None
    plan = json.loads(job.folder.plan.read_text(encoding="utf-8"))
    if "packing" not in plan["sizes"]:
        change = "finish it with that version, or give the recipe another name"
        raise RunError("the run was begun by a version that drew dropout otherwise", where=str(job.folder.path), change=change)
    return Sizes.of_plan(plan)


def _trainable(job: TrainingJob, base: PreTrainedModel, checkpoint_activations: bool) -> PreTrainedModel | PeftModel:
    """The model with an adapter, or all of it; says what is trained."""
    if checkpoint_activations:  # before the adapter, or PEFT does not let gradients into the first recomputed layer (trap 26)
        base.activation_checkpointing_enable({"use_reentrant": False})
    if job.recipe.lora == "none":
        job.folder.event("model", trained=sum(weight.numel() for weight in base.parameters()), modules=["all"])
        return base
    model = add_lora(base, job.recipe.lora, job.recipe.seed)
    parts = adapted_parts(model)
    for finding in missed_experts(base, parts.parameters):
        job.folder.event("finding", **finding.to_json())
        job.progress.say(finding.message)
    names = sorted({name.rpartition(".")[2] for name in parts.modules + parts.parameters})
    num_adapted = len(parts.modules) + len(parts.parameters)
    job.folder.event("model", trained=parts.num_trainable, adapted=num_adapted, modules=names)
    job.progress.say(f"adapter on {num_adapted} layers ({', '.join(names)}): {parts.num_trainable:,} numbers to train")
    return model


def _shared_share(rows: TokenRows, steps: Steps, seed: int) -> float:
    """Of the first steps' tokens, those that a prefix tree of each step computes once for several rows."""
    first = range(1, min(STEPS_SAMPLED, steps.total) + 1)
    sampled = [[rows[int(index)] for index in rows_of_step(step, steps, seed, rows)] for step in first]
    tokens = [sum(map(len, step)) for step in sampled]
    return sum(shared_share(step) * num for step, num in zip(sampled, tokens, strict=True)) / sum(tokens)


def _announce(job: TrainingJob, device: torch.device, sizes: Sizes, resolved: Sequence[Resolved]) -> None:
    values = [asdict(item) for item in resolved]
    files.write_json(job.folder.plan, {"steps": job.steps.to_json(), "sizes": sizes.to_json(), "resolved": values})
    job.folder.event("started", steps=job.steps.total, device=str(device), threads=torch.get_num_threads())
    for item in resolved:
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

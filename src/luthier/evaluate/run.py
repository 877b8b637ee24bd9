"""One evaluation, whole: load the model, measure its loss, ask every task, time single answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from luthier.core.progress import Progress
from luthier.data.questions import asked_hash, questions
from luthier.data.rows import Example
from luthier.data.store import Prepared
from luthier.data.tokenizer import load_tokenizer
from luthier.evaluate.loss import loss_of
from luthier.evaluate.measure import latency_rows, measure_latency
from luthier.evaluate.report import Latency, Loss, Report, Scores
from luthier.evaluate.shared import SharedCompleter
from luthier.evaluate.task import evaluate_task
from luthier.model.adapt import base_of, check_provenance, load_adapter
from luthier.model.generate import LocalCompleter
from luthier.model.load import free_bytes, load_model, resolve_devices, resolve_dtype
from luthier.model.peak import peak_memory
from luthier.recipe.proof import Task
from luthier.recipe.schema import Model, Recipe
from luthier.runs.workload import MicroBatchSize
from luthier.train.precision import Precision
from luthier.train.ranks import ALONE, Ranks
from luthier.train.validate import validation_loss

LOSS_BATCH = MicroBatchSize(rows=64, tokens=8_192)  # what fits; the loss does not depend on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is evaluated: a base or fully trained model, or one with adapters over it."""

    name: str
    model: Model
    adapters: tuple[Path, ...] = ()
    """None, or the folder of one."""
    num_devices: int = 1
    """Of each process that answers: more than one where the model is too large for it."""


def evaluate(subject: Subject, recipe: Recipe, prepared: Prepared, progress: Progress, ranks: Ranks = ALONE) -> Report:
    """Scores and predictions of the subject on the recipe's tasks over the prepared rows.

    Several ranks divide the rows; every one returns the same but for latency and memory, which the first measures, the others waiting.
    """
    devices = resolve_devices(subject.num_devices, ranks.rank)
    dtype, _ = resolve_dtype(subject.model.dtype, devices[0])
    with peak_memory(*devices) as peak:
        completer = loaded(subject, devices)
        answering = SharedCompleter(own=completer, ranks=ranks) if ranks.size > 1 else completer
        loss = _validation_loss(completer.model, prepared, Precision.of(dtype, devices[0], ranks))
        results = {
            task.name: evaluate_task(task, asked(task, prepared), answering, recipe.seed, progress) for task in recipe.evaluation.tasks
        }
        latency = _latency(recipe, prepared, completer, progress) if ranks.first else None
    seconds = sum(result.seconds for result in results.values())
    scores = Scores(
        subject=subject.name,
        data_hash=asked_hash(prepared.summary.hash, recipe.evaluation.tasks),
        tasks={name: result.scores for name, result in results.items()},
        loss=loss,
        latency=latency,
        tokens_per_second=sum(result.tokens for result in results.values()) / seconds if seconds else None,
        peak_memory_bytes=peak.num_bytes,
    )
    return Report(scores=scores, predictions={name: result.predictions for name, result in results.items()})


def loaded(subject: Subject, devices: Sequence[torch.device]) -> LocalCompleter:
    """The subject on these devices, ready to answer; raises where an adapter was trained under another base, template or stop ids."""
    tokenizer = load_tokenizer(subject.model)
    for adapter in subject.adapters:
        check_provenance(adapter, subject.model, tokenizer)
    memory = free_bytes(devices) if len(devices) > 1 else {}
    dtype, _ = resolve_dtype(subject.model.dtype, devices[0])
    model: PreTrainedModel | PeftModel = load_model(subject.model, dtype, devices[0], memory=memory)
    for adapter in subject.adapters:
        model = load_adapter(base_of(model), adapter)
    return LocalCompleter(model, tokenizer)


def asked(task: Task, prepared: Prepared) -> list[Example]:
    """The rows of a task: its own file's, or a split's."""
    return questions(task.data) if task.data else prepared.examples(task.split)


def _validation_loss(model: nn.Module, prepared: Prepared, precision: Precision) -> Loss | None:
    rows = prepared.rows("validation")
    if not len(rows):
        return None
    record = validation_loss(model, rows, LOSS_BATCH, precision)
    return loss_of(prepared, record.losses_R, record.targets_R)


def _latency(recipe: Recipe, prepared: Prepared, completer: LocalCompleter, progress: Progress) -> Latency | None:
    """By the first task's rows and answer length."""
    for task in recipe.evaluation.tasks[:1]:
        return measure_latency(
            asked(task, prepared),
            completer,
            num_rows=latency_rows(recipe.decision),
            max_new_tokens=task.max_new_tokens,
            seed=recipe.seed,
            progress=progress,
        )
    return None

"""One evaluation, whole: load the model, measure its loss, ask every task, time single answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import luthier.model  # noqa: F401  # isort: skip  # before PEFT: it imports bitsandbytes in silence, and without code of the hub
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from luthier.core.errors import UsageError
from luthier.core.progress import Progress
from luthier.data.store import Prepared
from luthier.data.tokenizer import load_tokenizer
from luthier.evaluate.asking import answered, first_latency, reported
from luthier.evaluate.loss import loss_of
from luthier.evaluate.report import Loss, Report
from luthier.evaluate.shared import SharedCompleter
from luthier.evaluate.task import TaskResult
from luthier.model.adapt import base_of, check_provenance, load_adapter
from luthier.model.generate import LocalCompleter
from luthier.model.load import free_bytes, load_model, resolve_devices, resolve_dtype
from luthier.model.peak import peak_memory
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
        results = _by_harness(recipe, completer, progress, ranks) | answered(recipe, prepared, answering, progress)
        latency = first_latency(recipe, prepared, completer, progress) if ranks.first else None
    report = reported(subject.name, recipe, prepared, results, latency)
    return replace(report, scores=report.scores.model_copy(update={"loss": loss, "peak_memory_bytes": peak.num_bytes}))


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


def _by_harness(recipe: Recipe, completer: LocalCompleter, progress: Progress, ranks: Ranks) -> dict[str, TaskResult]:
    """The tasks that lm-evaluation-harness asks, by their names; raises UsageError without the extra."""
    tasks = [task for task in recipe.evaluation.tasks if task.of_harness]
    if not tasks:
        return {}
    try:
        from luthier.evaluate.harness import evaluate_harness
    except ImportError as error:
        what = f"{tasks[0].scorer} needs the extra `harness` ({error.name} is not installed)"
        raise UsageError(what, change="pip install -c constraints.txt 'luthier[harness]'") from error
    return {task.name: evaluate_harness(task, completer, recipe.seed, progress, ranks) for task in tasks}


def _validation_loss(model: nn.Module, prepared: Prepared, precision: Precision) -> Loss | None:
    rows = prepared.rows("validation")
    if not len(rows):
        return None
    record = validation_loss(model, rows, LOSS_BATCH, precision)
    return loss_of(prepared, record.losses_R, record.targets_R)

"""What a finished run hands over to whoever exports, compares or serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import RunError, UsageError
from luthier.core.progress import Progress

if TYPE_CHECKING:
    import torch

    from luthier.data.store import Prepared
    from luthier.data.tokenizer import ChatTokenizer
    from luthier.export.merge import Handed, Merged
    from luthier.export.verify import Sample, Verification
    from luthier.recipe.schema import Model, Recipe
    from luthier.runs.store import RunFolder
    from luthier.train.card import Known, Origin, Result
    from luthier.train.precision import Precision


To = Literal["merged", "gguf", "vllm"]
FORMS: tuple[To, ...] = ("merged", "gguf", "vllm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A folder that was handed over, how it was made, and what was compared before it took its place."""

    folder: Path
    to: To
    made: Merged
    """How its weights were; copied, where the adapter itself lies in it."""
    verification: Verification
    told: Mapping[str, Any]
    """What there is besides to say of this form."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it, and events.jsonl keeps it."""
        made = {"over": self.made.over, "kl": dict(self.made.kl), **self.told}
        return {"folder": str(self.folder), self.to: made, "verification": self.verification.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run, its weights with what they are used with, and rows to compare on."""

    run: RunFolder
    handed: Handed
    sample: Sample

    @property
    def known(self) -> Known:
        """For a card: the data, and the tasks of every evaluation that the run keeps."""
        from luthier.train.card import Known

        return Known(data=self.sample.prepared.summary, results=_results(self.run))

    @property
    def dtype(self) -> str:
        """The type that it computed in, by its name."""
        return str(self.handed.precision.dtype).removeprefix("torch.")


class VerificationError(RunError):
    """What was written is not what was trained; `verification` has the figures."""

    def __init__(self, verification: Verification, folder: Path) -> None:
        self.verification = verification
        change = "evaluate it as it would be served; the adapter over its base is what was trained"
        super().__init__("; ".join(verification.failures), where=str(folder), change=change)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A finished run, and what its weights are used with."""

    run: RunFolder
    recipe: Recipe
    tokenizer: ChatTokenizer
    precision: Precision

    @property
    def model(self) -> Model:
        """What the weights in its folder are put over, or are."""
        return model_of(self.run, self.recipe)


def ready(name: str) -> Ready:
    """The finished run of this name; raises ModelError where its weights do not belong to the base, template or stop ids."""
    from luthier.data.tokenizer import load_tokenizer
    from luthier.model.adapt import check_provenance
    from luthier.model.load import resolve_device
    from luthier.runs.store import find, own_recipe
    from luthier.train.precision import Precision

    run = find(name)
    recipe = own_recipe(run)
    refuse_unfinished(run)
    tokenizer = load_tokenizer(recipe.model)
    check_provenance(run.adapter, recipe.model, tokenizer)
    return Ready(run=run, recipe=recipe, tokenizer=tokenizer, precision=Precision.of(_dtype(run, recipe), resolve_device()))


def refuse_unfinished(run: RunFolder) -> None:
    """Raise UsageError for a run without its final weights."""
    if not run.finished:
        raise UsageError(f"run {run.name} is not finished", change="run `luthier train` with the same recipe: it goes on where it stopped")


def model_of(run: RunFolder, recipe: Recipe) -> Model:
    """What the weights that a run has left are put over, or are."""
    return recipe.model.in_folder(run.adapter) if recipe.lora == "none" else recipe.model


def handed_of(ready: Ready, progress: Progress) -> tuple[Handed, Sample]:
    """The run's weights and what they are used with, and rows to compare on."""
    from luthier.export.merge import Handed
    from luthier.export.verify import Sample

    run, recipe = ready.run, ready.recipe
    sample = Sample.of(_prepared(run, recipe, progress))
    handed = Handed(
        origin=_origin(run, recipe), adapter=run.adapter, tokenizer=ready.tokenizer, precision=ready.precision, rows=sample.rows
    )
    return handed, sample


def finished(name: str, progress: Progress) -> Finished:
    """By a run's name or folder, with what it is compared on."""
    found = ready(name)
    handed, sample = handed_of(found, progress)
    return Finished(run=found.run, handed=handed, sample=sample)


def _origin(run: RunFolder, recipe: Recipe) -> Origin:
    """What the run's final weights came from, by the provenance.json beside them."""
    from luthier.data.repository import read_json
    from luthier.model.adapt import PROVENANCE
    from luthier.train.card import Origin

    told = read_json(run.adapter / PROVENANCE)
    try:
        return Origin(recipe=recipe, step=told["step"], final=told["final"], data_hash=told["data_hash"])
    except KeyError as error:
        change = "train again: the adapter was written by another version, or changed since"
        raise RunError(f"provenance.json does not tell {error}", where=str(run.adapter), change=change) from error


def _dtype(run: RunFolder, recipe: Recipe) -> torch.dtype:
    """The type that the run computed in, by its plan, where `auto` chose it."""
    from luthier.model.load import DTYPES, resolve_device, resolve_dtype
    from luthier.runs.planned import Planned

    planned = Planned.of(run)
    for item in () if planned == "unknown" else planned.resolved:
        if item.path == "model.dtype":
            return DTYPES[str(item.value)]
    dtype, _ = resolve_dtype(recipe.model.dtype, resolve_device())
    return dtype


def _prepared(run: RunFolder, recipe: Recipe, progress: Progress) -> Prepared:
    """The rows that the run was trained on, as they were prepared, or prepared again where that is gone; raises RunError for others."""
    from luthier.data.prepare import prepare
    from luthier.data.store import Prepared
    from luthier.runs.store import prepared_root
    from luthier.runs.summary import DataSummary

    trained = DataSummary.read(run.data).hash
    kept = Prepared(prepared_root() / trained)
    if (kept.folder / "data.json").exists():
        return kept
    again = prepare(recipe, progress)
    if again.summary.hash != trained:
        raise RunError("the rows have changed since this run was trained", where=str(run.path), change="put the old rows back")
    return again


def _results(run: RunFolder) -> tuple[Result, ...]:
    """The tasks of every evaluation that the run keeps."""
    from luthier.evaluate import report
    from luthier.train.card import Result

    return tuple(
        Result(subject=folder.name, task=name, metric=task.metric, value=task.value, low=task.low, high=task.high, n=task.n)
        for folder in sorted(path.parent for path in run.evaluation("").glob("*/scores.json"))
        for name, task in report.read(folder).scores.tasks.items()
    )

"""The model card: what a folder of weights is and where it came from, in the hub's form, and no more than is known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.core.redact import redact
from luthier.recipe.schema import Recipe
from luthier.runs.summary import DataSummary

Kind = Literal["adapter", "model", "merged"]
LEAD = {
    "adapter": "A LoRA adapter for",
    "model": "Fine-tuned from",
    "merged": "With a LoRA adapter merged into its weights, fine-tuned from",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the weights came from."""

    recipe: Recipe
    step: int
    final: Literal["best", "last"]
    data_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A task's mean score with its 95 % interval, over `n` rows, of the `subject` that was asked."""

    subject: str
    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the weights beyond their origin: nothing yet, when they have just been trained."""

    data: DataSummary | None = None
    results: tuple[Result, ...] = ()
    licence: str = ""
    """Of the base, where its own card names one."""
    notes: tuple[str, ...] = ()
    """How these weights were made of the run's, a sentence each."""


def card(origin: Origin, kind: Kind, known: Known) -> str:
    """README.md of a folder with these weights; secrets in it are redacted, and of files only the names are told."""
    model = origin.recipe.model
    which = "best by validation" if origin.final == "best" else "last"
    bits = "" if model.quantization == "none" else f", over weights in {model.quantization}"
    head = [
        "---",
        *([f"license: {known.licence}"] if known.licence else []),
        f"base_model: {model.base}",
        f"library_name: {'peft' if kind == 'adapter' else 'transformers'}",
        f"tags: [luthier{', lora' if kind == 'adapter' else ''}]",
        "---",
        f"# {origin.recipe.name}",
        "",
        f"{LEAD[kind]} `{model.base}` (revision {model.revision}), trained by Luthier{bits}:",
        f"weights after step {origin.step}, the {which}; data {origin.data_hash}, seed {origin.recipe.seed}.",
        *known.notes,
        "Recipe, metrics and evaluations are in the run folder; provenance.json has versions and hashes.",
        "",
    ]
    chapters = [_recipe(origin.recipe)]
    if known.data:
        chapters += [_data(known.data), _results(known.results), _limits(known)]
    return redact("\n".join([*head, *(line for chapter in chapters for line in chapter)]))


def _recipe(recipe: Recipe) -> list[str]:
    training, lora = recipe.training, recipe.lora
    adapter = (
        "all weights"
        if lora == "none"
        else f"LoRA r {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}"
        + "".join(f", {name}" for name, on in (("rsLoRA", lora.use_rslora), ("DoRA", lora.use_dora)) if on)
    )
    length = f"{training.max_steps} steps" if training.epochs is None else f"{training.epochs:g} epochs"
    return [
        "## Recipe",
        "",
        f"{adapter}; {length} of {training.global_batch_size} rows, learning rate {training.learning_rate:g} "
        f"({training.lr_scheduler}), optimizer {training.optimizer}.",
        "",
    ]


def _data(data: DataSummary) -> list[str]:
    files = [f"- `{Path(source.path).name}`: {source.rows:,} rows, sha256 `{source.sha256}`" for source in data.sources]
    splits = [
        f"| {name} | {split.examples:,} | {split.tokens:,} | {split.supervised_tokens:,} |"
        for name, split in data.splits.items()
        if split.examples
    ]
    return [
        "## Data",
        "",
        f"{data.rows.kept:,} of {data.rows.read:,} rows were kept; at most {data.max_length:,} tokens a row.",
        "",
        *files,
        "",
        "| split | conversations | tokens | of them trained on |",
        "|---|---|---|---|",
        *splits,
        "",
    ]


def _results(results: tuple[Result, ...]) -> list[str]:
    if not results:
        return ["## Results", "", "Not evaluated.", ""]
    rows = [
        f"| {one.subject} | {one.task} | {one.metric} | {one.value:.1%} | {one.low:.1%} … {one.high:.1%} | {one.n:,} |" for one in results
    ]
    return ["## Results", "", "| asked | task | metric | score | 95 % interval | rows |", "|---|---|---|---|---|---|", *rows, ""]


def _limits(known: Known) -> list[str]:
    lines = [f"- It has seen no row of more than {known.data.max_length:,} tokens." if known.data else ""]
    if known.results:
        lines.append("- The scores are those of the rows above and of rows like them; of anything else nothing was measured.")
    else:
        lines.append("- Nothing was measured of its answers.")
    licence = f"`{known.licence}`" if known.licence else "whatever its own card says: none was found beside the weights"
    lines.append(f"- The base's licence goes on to hold: {licence}. So do the base's own limits.")
    return ["## Limits", "", *lines, ""]

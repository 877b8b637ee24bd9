"""Verbs of the training: train."""

from pathlib import Path
from typing import Annotated

import typer

from luthier import flow
from luthier.cli.data import RecipeWords
from luthier.cli.output import Json, people, print_json, progress
from luthier.cli.words import split_words
from luthier.core import jsonl
from luthier.core.errors import UsageError


def train(
    words: RecipeWords,
    data: Annotated[Path | None, typer.Option("--data", help="Rows to train on, in place of the recipe's source.")] = None,
    force: Annotated[list[str], typer.Option("--force", metavar="CODE", help="Let a finding pass that refuses the run.")] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Train here, in the foreground; the same command again resumes."""
    given = split_words(words, "recipe")
    loaded = flow.load(Path(given.subject), given.overrides)
    if data:
        if len(loaded.recipe.data.sources) > 1:
            raise UsageError("--data takes the place of one source; the recipe has several", change="override data.sources instead")
        loaded = flow.load(Path(given.subject), (*given.overrides, f"data.sources.0.path={jsonl.dumps(str(data))}"))
    trained = flow.train(loaded, progress(), force)
    people(json).print(f"adapter: {trained.run.adapter}\nnext: luthier decide {trained.run.name}", soft_wrap=True)
    if json:
        print_json(
            {"run": trained.run.name, "folder": str(trained.run.path), "adapter": str(trained.run.adapter), "steps": trained.steps.total}
        )

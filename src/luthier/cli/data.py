"""Verbs of the data: prepare, inspect."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from luthier import flow
from luthier.cli.output import Json, people, print_json, progress
from luthier.cli.words import split_words
from luthier.core import files

RecipeWords = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE [KEY=VALUE] [@FILE]", help="A recipe file, and values to change in it; @FILE lays a file of them over it."
    ),
]


def prepare(
    words: RecipeWords,
    write: Annotated[Path | None, typer.Option("--write", help="Also write train, validation and test JSONL and metadata here.")] = None,
    json: Json = False,
) -> None:
    """Prepare the data; print what was kept, dropped and cut, the splits, lengths, overlap, and the steps that follow."""
    from luthier.cli.show import print_data, print_steps

    given = split_words(words, "recipe")
    recipe = flow.load(Path(given.subject), given.overrides).recipe
    prepared = flow.prepare(recipe, progress())
    summary = prepared.summary
    if write:
        flow.write_splits(prepared, write)
    print_data(people(json), summary)
    print_steps(people(json), flow.steps(recipe, prepared))
    people(json).print(f"prepared data: {prepared.folder}" + (f"; written to {write}" if write else ""), soft_wrap=True)
    if json:
        print_json(summary.model_dump(mode="json"))


def inspect(
    words: RecipeWords,
    row: Annotated[list[int], typer.Option("--row", help="Row of the split, from 0; may be given again.")] = [0],  # noqa: B006  typer copies it
    split: Annotated[Literal["train", "validation", "test"], typer.Option("--split", help="Rows of this split.")] = "train",
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with the rows instead of printing them.")] = None,
) -> None:
    """Show rows as the model sees them, token by token: what is trained on, and what is context only."""
    from luthier.data.inspect import to_html, to_rich  # numpy and jinja2, which no other verb waits for

    given = split_words(words, "recipe")
    recipe = flow.load(Path(given.subject), given.overrides).recipe
    rows = flow.inspect(recipe, split, row, progress())
    if html:
        files.write(html, to_html(rows))
        people(False).print(f"written: {html}", soft_wrap=True)
        return
    for inspected in rows:
        people(False).print(inspected.title, style="bold")
        people(False).print(to_rich(inspected), soft_wrap=True)

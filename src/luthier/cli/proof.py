"""Verbs of the proof: evaluate, decide."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from luthier import flow
from luthier.cli.output import Json, people, print_json, progress
from luthier.cli.words import split_words
from luthier.core.errors import UsageError


def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|MODEL|URL [KEY=VALUE]", help="A run, a model, an adapter's folder, or a server (https://HOST/v1#MODEL)."
        ),
    ],
    recipe: Annotated[Path | None, typer.Option("--recipe", help="The recipe with data and tasks; a run brings its own.")] = None,
    split: Annotated[Literal["train", "validation", "test", "recipe"], typer.Option("--split", help="Ask these rows.")] = "recipe",
    data: Annotated[Path | None, typer.Option("--data", help="Ask the rows of this file, all of them, in place of the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Ask at most so many rows.")] = None,
    json: Json = False,
) -> None:
    """Ask the recipe's tasks; print the scores with their intervals, per group, and what an answer costs."""
    from luthier.cli.show import print_scores

    given = split_words(words, "run or model")
    if given.overrides and not recipe:
        what = f"a run brings its own recipe, which {given.overrides[0]} would not change"
        raise UsageError(what, change="give --recipe, --split, --data or --limit")
    options = flow.Options(split=split, data=data or "recipe", limit=limit or "recipe")
    asked = flow.load(recipe, given.overrides).recipe if recipe else None
    evaluated = flow.evaluate(given.subject, options, asked, progress())
    print_scores(people(json), evaluated.report.scores)
    people(json).print(f"kept in {evaluated.folder}", soft_wrap=True)
    if json:
        print_json(evaluated.report.scores.model_dump(mode="json"))


def decide(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    baseline: Annotated[
        str, typer.Option("--baseline", help="base, another run, a server, or a scores.json; else the recipe's.")
    ] = "recipe",
    json: Json = False,
) -> None:
    """Judge a run by its recipe's rule. Exit code: deploy 0, iterate 10, abort 11, not enough data 12."""
    from luthier.cli.show import print_verdict

    verdict = flow.decide(run, baseline, progress())
    print_verdict(people(json), verdict)
    if json:
        print_json(verdict.to_json())
    raise typer.Exit(verdict.exit_code)

"""The verb check."""

from pathlib import Path

import typer

from luthier import flow
from luthier.cli.data import RecipeWords
from luthier.cli.output import Json, people, print_json, progress
from luthier.cli.words import split_words

TOLD = {"pass": ("green", "not so"), "fail": ("bold red", "FAILS"), "not applicable": ("dim", "not applicable")}
"""How each state looks, and what stands before the fault that was looked for."""


def check(words: RecipeWords, json: Json = False) -> None:
    """Look for what would make this recipe train something else than it says: numerical self-tests on its rows and on layers like its
    model's, in less than a minute. Exit code 1: one fails."""
    given = split_words(words, "recipe")
    outcomes = flow.check(flow.load(Path(given.subject), given.overrides).recipe, progress())
    console = people(json)
    for outcome in outcomes:
        style, word = TOLD[outcome.state]
        console.print(f"{word}: {outcome.fault}", style=style, markup=False, soft_wrap=True)
        console.print(f"    {outcome.compared}", markup=False, soft_wrap=True)
        if outcome.change:
            console.print(f"    {outcome.change}", style=style, markup=False, soft_wrap=True)
    if json:
        print_json({"checks": [outcome.to_json() for outcome in outcomes]})
    if any(outcome.state == "fail" for outcome in outcomes):
        raise typer.Exit(1)

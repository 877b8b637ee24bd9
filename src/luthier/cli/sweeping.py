"""The verb sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier import flow
from luthier.cli.data import RecipeWords
from luthier.cli.output import Json, people, print_json, progress
from luthier.cli.words import split_words
from luthier.core.errors import RunError
from luthier.core.words import percent

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.sweep.table import Entry, Table

OVER = "A field's values, lora.r=16,32,64; a range to draw from, lora.r=4..64; or a finding's code: each change that it offers."
WITHIN = "What it may take: '30 min', '8 h', '5 dollars'; may be given twice."
HALVING = "Train all a little, the better half of them twice as far, and so on: losers are stopped early."
ALL = 0


def sweep(
    words: RecipeWords,
    over: Annotated[list[str], typer.Option("--over", metavar="KEY=V,V", help=OVER)] = [],  # noqa: B006
    trials: Annotated[int, typer.Option("--trials", min=ALL, help="Draw so many of the combinations.", show_default="all")] = ALL,
    halving: Annotated[bool, typer.Option("--halving", help=HALVING)] = False,
    within: Annotated[list[str], typer.Option("--within", help=WITHIN)] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Search for better recipe values: trials in turn on one loaded base, and which differences are more than noise."""
    from luthier.sweep.budget import Budget
    from luthier.sweep.options import Asked

    given = split_words(words, "recipe")
    asked = Asked(over=tuple(over), overrides=given.overrides, number=trials or "all", halving=halving, budget=Budget.read(within))
    found = flow.sweep(flow.load(Path(given.subject), given.overrides), asked, progress())
    print_table(people(json), found, given.subject)
    if json:
        print_json(found.to_json())
    if not found.best:
        raise RunError("no trial came to a validation", where=found.folder, change="the table says why")


def print_table(console: Console, found: Table, recipe: str) -> None:
    """Trials, the best first; notes; what to do with the best."""
    from luthier.cli.show import table

    best = found.best
    page = table("trial", "trained", found.metric.name if found.metric else "", f"against {best.trial.told}" if best else "")
    for entry in found.entries:
        shown = f"{entry.shown.value:.4f}" if entry.shown else "–"
        page.add_row(entry.trial.told, percent(entry.share), shown, _against(found, entry))
    console.print(page)
    for entry in found.entries:
        if entry.why and entry.how != "stopped":
            console.print(f"{entry.trial.told}: {entry.how}: {entry.why}", markup=False, soft_wrap=True)
    for note in found.notes:
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"spent: {found.spent}; kept: {found.folder}", markup=False, soft_wrap=True)
    if best and best.standing:
        run = best.standing.run
        console.print(f"the best: {run.recipe}, which is {recipe} with {best.trial.told}", markup=False, soft_wrap=True)
        if best.how == "finished":
            console.print(f"next, on rows that chose nothing: luthier decide {run.name}", markup=False, soft_wrap=True)


def _against(found: Table, entry: Entry) -> str:
    """`+0.0312 nats (… ), worse`, and by when, where that was before the end."""
    if not (found.metric and entry.trial.name in found.metric.against):
        return ""
    when = "" if entry.share == 1 else f" after {percent(entry.share)}"
    return found.metric.told_against(entry.trial.name) + when

"""The verb compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from luthier import flow
from luthier.cli.output import Json, people, print_json
from luthier.core.words import duration

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.report.compare import Compared


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="Runs; all others are held against the first.")],
    json: Json = False,
) -> None:
    """Runs beside each other: in what their recipes differ, what each scores and takes, and which differences are more than noise."""
    compared = flow.compare(runs)
    print_compared(people(json), compared)
    if json:
        print_json(compared.to_json())


def print_compared(console: Console, compared: Compared) -> None:
    """A table of recipes, one of metrics, and what is missing."""
    from luthier.cli.show import table

    if compared.recipes:
        recipes = table("recipe", *compared.names)
        for changed in compared.recipes:
            recipes.add_row(changed.key, *changed.values)
        console.print(recipes)
    else:
        console.print("their recipes differ in nothing but the name")
    page = table("measured", *compared.names)
    for metric in compared.metrics:
        page.add_row(metric.name, *(metric.told(name) if name in metric.measured else "–" for name in compared.names))
        if metric.against:
            told = (metric.told_against(name) if name in metric.against else "" for name in compared.names)
            page.add_row("", *told, style="dim" if not any(each.real for each in metric.against.values()) else "")
    page.add_row("training", *(duration(cost.seconds) if cost.seconds else "–" for cost in compared.costs))
    if any(cost.dollars for cost in compared.costs):
        page.add_row("cost", *(f"${cost.dollars:,.2f}" if cost.dollars else "–" for cost in compared.costs))
    console.print(page)
    for name in compared.unevaluated:
        console.print(f"{name} has not been asked yet: luthier evaluate {name}", markup=False, soft_wrap=True)

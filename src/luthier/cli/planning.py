"""Verbs before the run: init, plan."""

from pathlib import Path
from typing import Annotated

import typer

from luthier import flow
from luthier.cli.data import RecipeWords
from luthier.cli.output import Json, people, print_json, progress
from luthier.cli.words import split_words
from luthier.core.errors import UsageError
from luthier.core.files import DiskError

REFUSED = 3


def plan(
    words: RecipeWords,
    gpu: Annotated[str, typer.Option("--gpu", help="Plan for this GPU (L4, H200x4), or for all that are known.")] = "recipe",
    rows: Annotated[str, typer.Option("--rows", help="Before there is data: N training rows, or N:V with V to validate.")] = "prepared",
    tokens: Annotated[str, typer.Option("--tokens", help="With --rows: tokens of a row, MEAN or MEAN:MAX.")] = "max_length",
    apply: Annotated[list[str], typer.Option("--apply", metavar="CODE", help="Write a finding's changes into the recipe.")] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Know steps, memory, time, money and mistakes before the run. Exit code 3: it cannot work so."""
    from luthier.cli.page import print_offers, print_plan

    given = split_words(words, "recipe")
    if apply and (given.overrides or gpu != "recipe"):
        raise UsageError("--apply writes into the recipe what was found of it as it stands", change="leave out overrides and --gpu")
    loaded = flow.load(Path(given.subject), given.overrides)
    if gpu not in ("recipe", "all", loaded.recipe.launch.gpu):
        loaded = flow.load(Path(given.subject), (*given.overrides, f"launch.gpu={gpu}", "launch.price_per_hour=auto"))
    if tokens != "max_length" and rows == "prepared":
        raise UsageError("--tokens goes with --rows", change="give --rows too, or leave both to the prepared data")
    stated = None if rows == "prepared" else flow.stated(loaded.recipe, rows, tokens)
    if gpu == "all":
        offers = flow.offers(loaded, stated, progress())
        print_offers(people(json), offers)
        if json:
            print_json({"offers": [offer.to_json() for offer in offers]})
        return
    planned = flow.plan(loaded, stated, progress())
    print_plan(people(json), planned)
    if stated is None:
        try:
            kept = f"kept: {flow.keep_plan(planned)}"
        except DiskError as error:
            kept = f"not kept: {error}"
        people(json).print(kept, markup=False, soft_wrap=True)
    if json:
        print_json(planned.to_json())
    if apply:
        for line in flow.apply(loaded, planned, apply):
            people(json).print(f"{given.subject}: {line}", markup=False, soft_wrap=True)
        return
    if planned.refused:
        raise typer.Exit(REFUSED)


def init(
    model: Annotated[str, typer.Option("--model", help="The base: a hub id, a folder, or demo.")] = "Qwen/Qwen3-0.6B",
    data: Annotated[Path, typer.Option("--data", help="A file of rows.")] = Path("rows.jsonl"),
    gpu: Annotated[str, typer.Option("--gpu", help="Where it will run: here, or a GPU's name.")] = "here",
    write: Annotated[Path, typer.Option("--write", help="The recipe to write; one that is there stays.")] = Path("recipe.yaml"),
) -> None:
    """Write a recipe with the values that fit the model's size, the rows and the device, each with its reason."""
    flow.init(write, model, data, gpu, progress())
    people(False).print(f"written: {write}\nnext: luthier plan {write}", soft_wrap=True)

"""Verbs of the training: train, rl, launch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from luthier import flow
from luthier.cli.data import RecipeWords
from luthier.cli.output import Json, people, print_json, progress
from luthier.cli.words import split_words
from luthier.core import jsonl
from luthier.core.errors import UsageError

if TYPE_CHECKING:
    from luthier.recipe.load import LoadedRecipe

Rows = Annotated[Path | None, typer.Option("--data", help="Rows to train on, in place of the recipe's source.")]
EnvFile = Annotated[Path | None, typer.Option("--env-file", help="KEY=VALUE lines for the processes that train; never logged or kept.")]
Force = Annotated[list[str], typer.Option("--force", metavar="CODE", help="Let a finding pass that refuses the run.")]


def train(words: RecipeWords, data: Rows = None, env_file: EnvFile = None, force: Force = [], json: Json = False) -> None:  # noqa: B006
    """Train here, in the foreground; the same command again resumes."""
    _tell(flow.train(_loaded(words, data, env_file, []), progress(), force), json)


def rl(words: RecipeWords, data: Rows = None, env_file: EnvFile = None, force: Force = [], json: Json = False) -> None:  # noqa: B006
    """Reinforce here: answers are drawn, rewarded as the recipe's `rl` says, and learned from; the same command again resumes."""
    _tell(flow.rl(_loaded(words, data, env_file, []), progress(), force), json)


def _tell(trained: flow.Trained, json: bool) -> None:
    people(json).print(f"adapter: {trained.run.adapter}\nnext: luthier decide {trained.run.name}", soft_wrap=True)
    if json:
        print_json(
            {"run": trained.run.name, "folder": str(trained.run.path), "adapter": str(trained.run.adapter), "steps": trained.steps.total}
        )


def launch(
    words: RecipeWords,
    on: Annotated[
        Literal["recipe", "local", "torchrun", "slurm", "ray", "modal"], typer.Option("--on", help="The host, in place of launch.on.")
    ] = "recipe",
    data: Rows = None,
    env_file: EnvFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, to the letter, and do nothing.")] = False,
    force: Force = [],  # noqa: B006
) -> None:
    """Train in the background or elsewhere: it goes on when you log out, and the same command goes on with it when it has stopped."""
    loaded = _loaded(words, data, env_file, [] if on == "recipe" else [f"launch.on={on}"])
    if dry_run:
        typer.echo(flow.launch_text(loaded, force), nl=False)
        return
    launched = flow.launch(loaded, progress(), force)
    job, run = launched.job, launched.run
    people(False).print(f"run: {run.path}\njob: {job.on} {job.id}\nlog: {run.log}", soft_wrap=True, markup=False)


def _loaded(words: list[str], data: Path | None, env_file: Path | None, more: Sequence[str]) -> "LoadedRecipe":
    """The recipe with what the options change in it."""
    given = split_words(words, "recipe")
    overrides = (*given.overrides, *more)
    if env_file:
        overrides = (*overrides, f"launch.env_file={jsonl.dumps(str(env_file))}")
    loaded = flow.load(Path(given.subject), overrides)
    if not data:
        return loaded
    if len(loaded.recipe.data.sources) > 1:
        raise UsageError("--data takes the place of one source; the recipe has several", change="override data.sources instead")
    return flow.load(Path(given.subject), (*overrides, f"data.sources.0.path={jsonl.dumps(str(data))}"))

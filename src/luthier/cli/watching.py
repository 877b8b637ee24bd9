"""Verbs of a run that is there: status, watch, logs, save, stop."""

from typing import TYPE_CHECKING, Annotated

import typer

from luthier import flow
from luthier.cli.output import Json, people, print_json
from luthier.core.redact import redact

if TYPE_CHECKING:
    from luthier.runs.status import Status

RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, or its folder.")]
OneRun = Annotated[str, typer.Argument(metavar="[RUN]", help="One run in detail; without it, all.")]


def status(run: OneRun = "", json: Json = False) -> None:
    """Where a run stands, or all of them: state, step, losses, pace, time left, checkpoint, findings."""
    from luthier.cli.standing import print_status, print_statuses

    if run:
        found = flow.status(run)
        print_status(people(json), found)
        if json:
            print_json(found.to_json())
        return
    every = flow.statuses()
    print_statuses(people(json), every)
    if json:
        print_json({"runs": [each.to_json() for each in every]})


def watch(run: RunName) -> None:
    """A run as it goes, on the whole screen: curves, pace, device, memory, ranks, events; q leaves, and the run goes on."""
    from luthier.cli.screen import watch as show

    show(run, people(False))


def logs(run: RunName, follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run is over.")] = False) -> None:
    """What the processes of a run print: their libraries' warnings, errors, the progress of a launched run."""
    for line in flow.logs(run, follow=follow):
        typer.echo(redact(line))


def save(run: RunName, json: Json = False) -> None:
    """Save a checkpoint after the step that the run is in, wherever it runs; it goes on."""
    found = flow.save(run)
    people(json).print(f"run {found.run} is saved after step {found.step}: {found.checkpoint}", soft_wrap=True, markup=False)
    if json:
        print_json({"run": found.run, "step": found.step, "checkpoint": found.checkpoint})


def stop(
    run: RunName,
    now: Annotated[bool, typer.Option("--now", help="End it at once, without a save: back to the last checkpoint.")] = False,
    json: Json = False,
) -> None:
    """Let a run save and end, wherever it runs; the same command goes on with it."""
    found = flow.stop(run, now=now)
    people(json).print(_ended(found), soft_wrap=True, markup=False)
    if json:
        print_json(found.to_json())


def _ended(found: "Status") -> str:
    kept = f"saved after step {found.checkpoint} of {found.total}" if found.checkpoint else "no step of it was saved"
    if found.moves:
        return f"run {found.name} was asked to save and end, and still does what it did ({found.phase}); luthier status {found.name} tells"
    return f"run {found.name} is {found.state}: {kept}; the same command goes on"

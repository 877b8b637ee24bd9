"""Verbs that make pages: ui, report."""

from typing import Annotated

import typer

from luthier import flow
from luthier.cli.output import Json, people, print_json, say
from luthier.cli.watching import RunName


def ui(port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: one that is free.")] = 0) -> None:
    """A page in your browser over all runs: curves as they grow, findings, rows, answers, comparison; save and stop. Ctrl-C ends it."""
    from luthier.core.signals import left_by_ctrl_c
    from luthier.web.serve import serve

    say("the runs of this machine, for who has this link; Ctrl-C ends the page, and no run:")
    with left_by_ctrl_c():
        serve(port, typer.echo)


def report(run: RunName, json: Json = False) -> None:
    """A run as one page to send to somebody: curves, plan against fact, data, evaluation, verdict, provenance."""
    path = flow.report(run)
    people(json).print(f"{path}", soft_wrap=True, markup=False)
    if json:
        print_json({"report": str(path)})

"""Where things are printed: results on stdout; progress, errors and, beside --json, people's text on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core import jsonl
from luthier.core.progress import Progress
from luthier.core.redact import redact

if TYPE_CHECKING:  # rich is imported by the verbs that print, not by the help page
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; text for people goes to stderr.")]


PIPED = 160
"""Columns of what is printed into a file or a pipe: tables are not cut there."""


def progress() -> Progress:
    """Progress on stderr."""
    from rich.console import Console

    from luthier.cli.progress import progress_for

    return progress_for(Console(stderr=True))


def people(json: bool) -> Console:
    """Where tables go: stdout, unless a JSON object is printed there."""
    from rich.console import Console

    console = Console(stderr=json, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED
    return console


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(jsonl.dumps(value, indent=2) + "\n")


def say(message: str) -> None:
    """What is no error, for people, on stderr."""
    typer.secho(redact(message), err=True)


def tell(message: str) -> None:
    """An error for people, on stderr."""
    typer.secho(f"error: {redact(message)}", fg="red", err=True)

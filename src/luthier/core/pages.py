"""Pages in Markdown out of docstrings: what a function finds, its severity, arithmetic, what to do, and source."""

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LEADS = re.compile(r"^(Severity|Arithmetic|What to do|Source):", re.MULTILINE)
MADE = "<!-- Made from the check's docstring: make docs -->"

Finder = Callable[..., Any]
"""A check of a plan, or a rule over a run, whose findings have its name."""


def code_of(finder: Finder) -> str:
    """The code of a function's findings, which is its name."""
    return finder.__name__.replace("_", "-")


def page(finder: Finder) -> str:
    """The page of a code."""
    title, _, rest = _text(finder).partition("\n")
    return f"{MADE}\n# {code_of(finder)}\n\n{title}\n" + LEADS.sub(r"**\1.**", rest) + "\n"


def chapter(title: str, finders: Sequence[Finder]) -> list[str]:
    """Lines of an index: a table of these codes."""
    lines = [f"## {title}\n", "| code | severity | what is found |", "|---|---|---|"]
    lines += [f"| [{code_of(each)}]({code_of(each)}.md) | {_severity(each)} | {_text(each).splitlines()[0]} |" for each in finders]
    return [*lines, ""]


def write(folder: Path, pages: dict[str, str]) -> None:
    """The pages, by file name, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def _severity(finder: Finder) -> str:
    return next(line.removeprefix("Severity: ") for line in _text(finder).splitlines() if line.startswith("Severity: ")).rstrip(".")


def _text(finder: Finder) -> str:
    return inspect.getdoc(finder) or ""

"""What a run is asked from outside: one word in its `control` file, which who trains it reads after each step and then takes away; and in
its `until` file the step to leave off after, which it reads when it begins."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import psutil

from luthier.core import files
from luthier.runs.store import RunFolder

Wish = Literal["nothing", "save", "stop"]
"""To go on; to save and go on; to save and end. The later one includes those before it."""
WISHES: tuple[Wish, ...] = ("nothing", "save", "stop")


def ask(run: RunFolder, wish: Wish) -> None:
    """Leave a wish for the end of the step; one that asks for more already stays."""
    if WISHES.index(wish) > WISHES.index(wished(run)):
        with files.told(run.control.name, run.path):
            files.write(run.control, f"{wish}\n")


def wished(run: RunFolder) -> Wish:
    """What is asked; what is none of these words is nothing."""
    try:
        word = run.control.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return "nothing"
    return next((wish for wish in WISHES if wish == word), "nothing")


def obeyed(run: RunFolder, wish: Wish) -> None:
    """Take the wish away, unless more was asked meanwhile."""
    if wished(run) == wish:
        run.control.unlink(missing_ok=True)


def until(run: RunFolder) -> int:
    """The step to leave off after; beyond every last one where none is asked."""
    try:
        return int(run.until.read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, ValueError):
        return sys.maxsize


@contextmanager
def leaving_off_after(run: RunFolder, step: int) -> Iterator[None]:
    """Within, the run is trained to this step of its schedule, saved, and no further; the same command goes on with it."""
    with files.told(run.until.name, run.path):
        files.write(run.until, f"{step}\n")
    try:
        yield
    finally:
        run.until.unlink(missing_ok=True)


def forget(run: RunFolder) -> None:
    """Take away what was asked before this process began: of one that was killed before it could obey. What was asked since is for it."""
    for asked in (run.control, run.until):
        with suppress(FileNotFoundError):
            if asked.stat().st_mtime < psutil.Process().create_time():
                asked.unlink()

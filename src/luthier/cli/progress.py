"""Progress for people: a live bar on a terminal, plain lines elsewhere. Always on stderr, so stdout stays the result."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from luthier.core.progress import Advance, Progress
from luthier.core.redact import redact

PLAIN_SECONDS = 5.0


def progress_for(console: Console) -> Progress:
    """Bars where the console is a terminal, else lines."""
    return TerminalProgress(console) if console.is_terminal else PlainProgress(console)


class TerminalProgress:
    """One bar per piece of work: done, total, text, elapsed, remaining."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """A bar that stays after the work is done."""
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self._console) as bars:
            bar = bars.add_task(name, total=total, text="")
            yield lambda done, text: bars.update(bar, completed=done, text=text)

    def say(self, line: str) -> None:
        """A line above the bars."""
        self._console.print(redact(line), highlight=False, markup=False)


class PlainProgress:
    """A line every few seconds, and one at the end: for logs, pipes and CI."""

    def __init__(self, console: Console, seconds_between: float = PLAIN_SECONDS) -> None:
        self._console, self._seconds_between = console, seconds_between

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Lines `name 30/90 text, 12 s left`."""
        start = last = time.monotonic()
        latest = (0, "")

        def advance(done: int, text: str) -> None:
            nonlocal last, latest
            latest = (done, text)
            now = time.monotonic()
            if now - last >= self._seconds_between:
                last = now
                left = (now - start) / max(done, 1) * (total - done)
                self.say(f"{name} {done}/{total} {text}".rstrip() + f", {left:.0f} s left")

        yield advance
        done, text = latest
        self.say(f"{name} {done}/{total} {text}".rstrip() + f", {time.monotonic() - start:.1f} s")

    def say(self, line: str) -> None:
        """A line as it is."""
        self._console.print(redact(line), highlight=False, markup=False, soft_wrap=True)

"""Progress for people: a live bar on a terminal, plain lines elsewhere. Always on stderr, so stdout stays the result."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from luthier.core.progress import Advance, Progress
from luthier.core.redact import redact

PLAIN_SECONDS = 5.0
WIDEST_BAR = 40


def progress_for(console: Console) -> Progress:
    """Bars where the console is a terminal, else lines."""
    return TerminalProgress(console) if console.is_terminal else PlainProgress(console)


class TerminalProgress:
    """One bar per piece of work: done, total, text, how long it still takes. Where columns are few, it is the bar that has fewer."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """A bar that stays after the work is done."""
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=WIDEST_BAR)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[text]}"),
            _Left(table_column=Column(no_wrap=True)),
        )
        with Bars(*columns, console=self._console, expand=True) as bars:
            bar = bars.add_task(name, total=total, text="")
            yield lambda done, text: bars.update(bar, completed=done, text=text)

    def say(self, line: str) -> None:
        """A line above the bars."""
        self._console.print(redact(line), highlight=False, markup=False)


class _Left(ProgressColumn):
    """`0:01:30 left`, and of what is done how long it took."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """The column of one task."""
        if task.finished_time is not None:
            return Text(f"in {_clock(task.finished_time)}")
        return Text("-:--:-- left" if task.time_remaining is None else f"{_clock(task.time_remaining)} left")


def _clock(seconds: float) -> str:
    """`0:01:30`, `27:00:05`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class PlainProgress:
    """A line every few seconds, and one at the end: for logs, pipes and CI. The time that is left goes by the pace since the first part."""

    def __init__(self, console: Console, seconds_between: float = PLAIN_SECONDS) -> None:
        self._console, self._seconds_between = console, seconds_between

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Lines `name 30/90 text, 0:00:12 left`."""
        start = last = time.monotonic()
        latest = (0, "")
        first: tuple[int, float] | None = None

        def advance(done: int, text: str) -> None:
            nonlocal last, latest, first
            latest = (done, text)
            now = time.monotonic()
            first = first or (done, now)  # what was done before, by another process, says nothing of this one's pace
            if now - last >= self._seconds_between:
                last = now
                paced = done - first[0]
                left = f", {_clock((now - first[1]) / paced * (total - done))} left" if paced else ""
                self.say(f"{name} {done}/{total} {text}".rstrip() + left)

        yield advance
        done, text = latest
        self.say(f"{name} {done}/{total} {text}".rstrip() + f", {time.monotonic() - start:.1f} s")

    def say(self, line: str) -> None:
        """A line as it is."""
        self._console.print(redact(line), highlight=False, markup=False, soft_wrap=True)

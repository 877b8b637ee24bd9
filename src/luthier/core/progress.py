"""How long work says how far it is, without knowing who is looking."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, TextIO

Advance = Callable[[int, str], None]
"""Call with the number done so far (not the increment) and a text such as `loss 0.41`; where work goes on, first with what was done."""


class Progress(Protocol):
    """Where work is shown: a bar on a terminal, lines in a log, or nowhere."""

    def task(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """A piece of work with a known number of parts, shown while the context is open."""
        ...

    def say(self, line: str) -> None:
        """One line that stays."""
        ...


class Silent:
    """Progress that nobody watches."""

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Shows nothing."""
        yield lambda done, text: None

    def say(self, line: str) -> None:
        """Says nothing."""


class Told:
    """Progress as JSON lines, for another process, which shows it by `follow`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._tell({"anew": True})

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Tells its beginning, each part and its end."""
        self._tell({"task": name, "total": total})
        yield lambda done, text: self._tell({"done": done, "text": text})
        self._tell({"ended": name})

    def say(self, line: str) -> None:
        """Tells the line."""
        self._tell({"say": line})

    def _tell(self, what: dict[str, Any]) -> None:
        self._stream.write(json.dumps(what) + "\n")
        self._stream.flush()


def follow(lines: Iterable[str], progress: Progress) -> None:
    """Show what `Told` tells, until there are no more lines. Who tells anew, after a crash, has left his tasks."""
    tasks: list[tuple[ExitStack, Advance]] = []
    try:
        for line in lines:
            match json.loads(line):
                case {"task": name, "total": total}:
                    task = ExitStack()
                    tasks.append((task, task.enter_context(progress.task(name, total))))
                case {"done": done, "text": text}:
                    tasks[-1][1](done, text)
                case {"ended": _}:
                    tasks.pop()[0].close()
                case {"say": said}:
                    progress.say(said)
                case {"anew": _}:
                    _close(tasks)
    finally:
        _close(tasks)


def _close(tasks: list[tuple[ExitStack, Advance]]) -> None:
    while tasks:
        tasks.pop()[0].close()

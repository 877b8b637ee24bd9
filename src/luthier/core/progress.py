"""How long work says how far it is, without knowing who is looking."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int, str], None]
"""Call with the number done so far (not the increment) and a short text such as `loss 0.41`."""


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

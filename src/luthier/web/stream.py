"""What a run writes while its page is open, as server-sent events: read on from a byte of its metrics."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from luthier import flow
from luthier.core import jsonl
from luthier.report.curves import drawn
from luthier.runs.store import RunFolder
from luthier.watch.series import Series

SECONDS_BETWEEN_LOOKS = 1.0

Part = Callable[[], str]
"""HTML of a part of the page, as it is now."""


@dataclass(slots=True, kw_only=True)
class Stream:
    """One page that is open."""

    run: RunFolder
    at: Series
    """Where its metrics were read to; no numbers."""
    parts: dict[str, Part]
    """By the id of the element on the page."""
    over: Callable[[], bool] = lambda: False
    """Whether the server is to end, which it cannot while a stream is open."""
    _told: dict[str, str] = field(default_factory=dict)

    def look(self) -> dict[str, Any]:
        """What is new; empty where nothing is. The page begins anew where another file has taken the metrics' place."""
        found = flow.series(str(self.run.path), self.at)
        begun = self.at.file == "none" and self.at.offset == 0
        anew = found.file != self.at.file and not begun
        told: dict[str, Any] = {"anew": True} if anew else {}
        if not anew and (len(found.train) or len(found.validation)):
            told["charts"] = [each.to_json() for each in drawn(found)]
        self.at = found.behind
        changed = {name: text for name, part in self.parts.items() if (text := part()) != self._told.get(name)}
        self._told |= changed
        return told | ({"parts": changed} if changed else {})

    async def events(self) -> AsyncIterator[str]:
        """Events for as long as the page is open, until the run is decided or the server ends."""
        while not self.over():
            decided = await asyncio.to_thread(
                lambda: self.run.finished and self.run.verdict.exists()
            )  # before the last look: what was written last is in it
            told = await asyncio.to_thread(self.look)
            if told:
                yield f"id: {place(self.at)}\ndata: {jsonl.dumps(told)}\n\n"
            if decided:
                yield "event: over\ndata: {}\n\n"
                return
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


def place(series: Series) -> str:
    """Which file, and the byte it was read to: `66-1234-5600`."""
    return f"{'0-0' if series.file == 'none' else '-'.join(map(str, series.file))}-{series.offset}"


def at_place(text: str) -> Series:
    """A series of no numbers, to read on from there; from the beginning where it is no place."""
    numbers = text.split("-")
    if len(numbers) != 3 or not all(number.isascii() and number.isdecimal() and len(number) < 20 for number in numbers):
        return Series()
    device, inode, offset = map(int, numbers)
    return Series(file=(device, inode) if inode else "none", offset=offset)

"""What a run writes while its page is open, as server-sent events: read on from a byte of its metrics."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier import flow
from luthier.core import jsonl
from luthier.report.curves import drawn
from luthier.runs.held_out import HeldOutReward
from luthier.runs.store import RunFolder
from luthier.watch.series import Series

SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the page."""

    text: Callable[[], str]
    """Its HTML, as it is now."""
    of: Callable[[], object] = time.monotonic
    """What it was made of: it is not made again while that is the same. Without one it may change by the clock alone."""


@dataclass(slots=True, kw_only=True)
class Stream:
    """One page that is open."""

    run: RunFolder
    at: Series
    """Where its metrics were read to; no numbers."""
    parts: dict[str, Part]
    """By the id of the element on the page."""
    rewards: Callable[[], Sequence[HeldOutReward]] = tuple
    """What the run's answers to validation rows were worth so far."""
    over: Callable[[], bool] = lambda: False
    """Whether the server is to end, which it cannot while a stream is open."""
    _rewarded: int = -1
    """The step up to which these were told. The page passes over what it has."""
    _of: dict[str, object] = field(default_factory=dict)
    _told: dict[str, str] = field(default_factory=dict)

    def look(self) -> dict[str, Any]:
        """What is new; empty where nothing is. The page begins anew where another file has taken the metrics' place."""
        found = flow.series(str(self.run.path), self.at)
        begun = self.at.file == "none" and self.at.offset == 0
        anew = found.file != self.at.file and not begun
        told: dict[str, Any] = {"anew": True} if anew else {}
        rewards = [each for each in self.rewards() if each.step > self._rewarded]
        if not anew and (len(found.train) or len(found.validation) or rewards):
            told["charts"] = [each.to_json() for each in drawn(found, rewards)]
            self._rewarded = max((each.step for each in rewards), default=self._rewarded)
        self.at = found.behind
        before, self._of = self._of, {name: part.of() for name, part in self.parts.items()}
        made = {name: part.text() for name, part in self.parts.items() if name not in before or before[name] != self._of[name]}
        changed = {name: text for name, text in made.items() if text != self._told.get(name)}
        self._told |= changed
        return told | ({"parts": changed} if changed else {})

    def decided(self) -> bool:
        """Whether nothing more is to come."""
        return self.run.verdict.exists() and self.run.finished

    async def events(self) -> AsyncIterator[str]:
        """Events for as long as the page is open, until the run is decided or the server ends."""
        while not self.over():
            decided = await asyncio.to_thread(self.decided)  # before the last look: what was written last is in it
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

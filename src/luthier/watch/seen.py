"""A run that is looked at again and again: its files are read on from where they were, and rules are asked where there is something new."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from luthier.core import files, jsonl
from luthier.core.errors import LuthierError
from luthier.core.files import Stamp
from luthier.core.finding import Finding
from luthier.core.jsonl import Salvaged
from luthier.runs.status import Status
from luthier.runs.store import RunFolder, own_recipe
from luthier.watch.rules import CODES, found_in
from luthier.watch.rules.case import Case, look
from luthier.watch.series import Series, read_on

SHARE = 0.1
"""Of a watcher's time, the most that rules take: they are asked of 200,000 steps in 0.4 s (2026-11-29, a core of a Xeon), every 4 s."""


@dataclass(slots=True, kw_only=True)
class Seen:
    """One run, and what was read of it so far. Threads may share it: what it holds is replaced, and never changed."""

    run: RunFolder
    rules: Callable[[Case], tuple[Finding, ...]] = found_in
    _series: Series = field(default_factory=Series)
    _events: Salvaged = field(default_factory=Salvaged)
    _found: tuple[Finding, ...] = ()
    _of: Stamp = frozenset()
    """The files that `_found` was found in."""
    _status: Status | None = None
    _whole: Stamp = frozenset()
    """All files, when its status was kept."""
    _due: float = -math.inf
    """When rules may be asked again while the run goes on."""

    def series(self) -> Series:
        """What it has measured until now."""
        self._series = read_on(self.run.metrics, self._series)
        return self._series

    def events(self) -> Sequence[Mapping[str, Any]]:
        """All that it has told, the oldest first; lines that cannot be read are left out."""
        self._events = jsonl.salvage_on(self.run.events, self._events)
        return self._events.records

    def findings(self) -> tuple[Finding, ...]:
        """All that rules find now, the gravest first; raises RunError where its recipe is damaged."""
        return self.rules(look(self.run, own_recipe(self.run), self.series(), self.events()))

    def kept(self, look: Callable[[Self], Status]) -> Status:
        """What `look` says of it; of a run that has ended, what it said last, while every file is as it was then."""
        now = files.stamp(*self.run.path.glob("*"))
        if now != self._whole or self._status is None or self._status.moves:
            self._whole, self._status = now, look(self)
        return self._status

    def diagnosed(self, found: Status) -> Status:
        """The status with what its files show now in place of what they showed at the last end of training.

        While the run goes on that may be what they showed some seconds ago. A damaged recipe leaves what was told.
        """
        run = self.run
        now = files.stamp(run.recipe, run.plan, run.metrics, run.events, run.ranks, *run.path.glob("evaluations/*/scores.json"))
        if now != self._of and (not found.moves or time.monotonic() >= self._due):
            began = time.monotonic()
            try:
                self._found = self.findings()
            except LuthierError:
                return found
            ended = time.monotonic()
            self._of, self._due = now, ended + (ended - began) * (1 / SHARE - 1)
        told = (finding for finding in found.findings if finding.code not in CODES)
        return replace(found, findings=(*told, *self._found), diagnosed=True)

    def forget(self) -> None:
        """Let go of its numbers: 19 MB of 200,000 steps."""
        self._series = Series()

"""What came out of a sweep: every trial with what it showed, and which are apart from the best by more than noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.words import percent
from luthier.evaluate.metrics import Measurement
from luthier.report.compare import Against, Metric, held_against
from luthier.score.sequence import Level
from luthier.sweep.budget import Spent
from luthier.sweep.space import Trial
from luthier.sweep.standing import Shown, Standing

How = Literal["finished", "stopped", "failed", "refused", "left"]
"""Trained to its end; to a rung, where others were better; ended by an error; refused by its plan; not trained, or not further, because it
would not fit what is left of the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A trial at the end of a sweep. `why` it is not finished; how it stands, where it was begun."""

    trial: Trial
    how: How
    why: str = ""
    standing: Standing | None = None

    @property
    def share(self) -> float:
        """Of its steps."""
        return self.standing.share if self.standing else 0.0

    @property
    def shown(self) -> Shown | None:
        """The validation it is judged by."""
        return self.standing.latest if self.standing else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The trials, the best first; `metric` has their values and each one's difference from the best, where both were as far trained."""

    entries: tuple[Entry, ...]
    metric: Metric | None
    notes: tuple[str, ...]
    spent: Spent
    folder: str

    @property
    def best(self) -> Entry | None:
        """The one to take."""
        return self.entries[0] if self.entries[0].shown else None

    def to_json(self) -> dict[str, Any]:
        """As it stands in table.json; what is not known is null."""
        best = self.best
        return {
            "folder": self.folder,
            "best": {"run": _run(best), "overrides": list(best.trial.overrides)} if best else None,
            "trials": [self._told(entry) for entry in self.entries],
            "notes": list(self.notes),
            "spent": {"seconds": self.spent.seconds, "dollars": self.spent.dollars},
        }

    def _told(self, entry: Entry) -> dict[str, Any]:
        shown, against = entry.shown, self.metric.against.get(entry.trial.name) if self.metric else None
        told: dict[str, Any] = {"run": _run(entry), "overrides": list(entry.trial.overrides), "state": entry.how, "why": entry.why}
        if shown and entry.standing:
            told |= {"share": entry.share, "step": shown.step, "metric": entry.standing.metric, "value": shown.value}
        if against:
            between = against.difference.interval
            ends = {key: value if math.isfinite(value) else None for key, value in (("low", between.low), ("high", between.high))}
            told["difference"] = {"value": between.value, **ends, "pairs": against.difference.pairs, "real": against.real}
        return told


def table(entries: Sequence[Entry], edges: Mapping[str, Sequence[str]], spent: Spent, folder: str) -> Table:
    """The trials in order, held against the best. `edges` of each trial: its values at an end of what was tried."""
    ordered = tuple(sorted(entries, key=_order))
    best = ordered[0]
    if not (best.standing and best.shown):
        return Table(entries=ordered, metric=None, notes=(), spent=spent, folder=folder)
    measured = {entry.trial.name: entry.standing.measured(entry.shown) for entry in ordered if entry.standing and entry.shown}
    against = held_against(_pairs(best.standing, ordered[1:]), Level())
    metric = Metric(name=best.standing.metric, measured=measured, against=against)
    notes = tuple(_notes(ordered, against, edges.get(best.trial.name, ())))
    return Table(entries=ordered, metric=metric, notes=notes, spent=spent, folder=folder)


def _pairs(best: Standing, others: Sequence[Entry]) -> dict[str, tuple[Measurement, Measurement]]:
    """Of each other trial and the best what both had shown when they were as far as the other came."""
    found = {}
    for entry in others:
        if entry.standing and entry.shown and (then := best.upto(round(entry.share * best.steps.total))):
            found[entry.trial.name] = (entry.standing.measured(entry.shown), best.measured(then))
    return found


def _order(entry: Entry) -> tuple[bool, float, float]:
    """Those that came furthest first, of them the best; without a validation last."""
    if not (entry.standing and entry.shown):
        return True, 0.0, 0.0
    return False, -entry.share, -entry.shown.value if entry.standing.higher_is_better else entry.shown.value


def _notes(ordered: Sequence[Entry], against: Mapping[str, Against], edges: Sequence[str]) -> list[str]:
    """What a reader of the table should not overlook."""
    best = ordered[0]
    notes = [f"{text}: a better one may lie beyond" for text in edges]
    alike = [entry for entry in ordered if (held := against.get(entry.trial.name)) and not held.real]
    if ended := [entry.trial.told for entry in alike if entry.how == "finished"]:
        notes.append(f"not told apart from the best by these rows: {'; '.join(ended)}")
    if early := [entry.trial.told for entry in alike if entry.how == "stopped"]:
        notes.append(f"stopped early though not told apart from the best by then: {'; '.join(early)}")
    if best.how != "finished":
        notes.append(f"the best is trained to {percent(best.share)} of its steps: the same command, with a larger budget, goes on")
    return notes


def _run(entry: Entry) -> str:
    return entry.standing.run.name if entry.standing else entry.trial.name

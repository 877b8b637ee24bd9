"""The case that rules look at: a run's recipe, its plan, and what it has measured so far, read from its folder."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.core import jsonl
from luthier.core.finding import Change, Finding
from luthier.recipe.schema import Recipe
from luthier.runs.planned import Planned
from luthier.runs.store import RunFolder
from luthier.watch import rollouts, rows
from luthier.watch.rollouts import Answer
from luthier.watch.rows import Rows
from luthier.watch.series import Series

TAIL_BYTES = 1 << 19
"""Of ranks.jsonl: the newest 2,000 lines or so."""
OF_A_RANK = {"step", "rank", "host", "seconds", "waiting_seconds"}
"""Of its keys, those that are looked at."""
COMPARED = 3
"""Validations whose rows are read: the best one's, and those of so many newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A task of an evaluation, as scores.json has it."""

    evaluation: str
    task: str
    metric: str
    value: float
    low: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """Everything that rules follow from."""

    recipe: Recipe
    series: Series
    planned: Planned | Literal["unknown"] = "unknown"
    rows: Mapping[int, Rows] = field(default_factory=dict)
    """By the step of the validation: of the best, and of the newest."""
    events: Sequence[Mapping[str, Any]] = ()
    ranks: Sequence[Mapping[str, Any]] = ()
    """Lines of ranks.jsonl, the newest."""
    scores: Sequence[Scored] = ()
    answers: Sequence[Answer] = ()
    """Of the first steps and the newest, where answers are rewarded."""

    @property
    def last_step(self) -> int:
        """The newest that is recorded; 0 before the first."""
        return int(self.series.train["step"][-1]) if len(self.series.train) else 0

    @property
    def resumed_after(self) -> int:
        """The step that the newest start went on from, on devices that may be others; 0 for a run that was begun once."""
        steps = (event.get("step") for event in reversed(self.events) if event.get("event") == "resumed")
        return next((step for step in steps if isinstance(step, int)), 0)

    @property
    def total(self) -> int:
        """Steps that the run is to have."""
        return self.last_step if self.planned == "unknown" else self.planned.steps.total

    @property
    def keeps_best(self) -> bool:
        """Whether the best checkpoint becomes the adapter, not the last one."""
        return self.recipe.checkpoints.final != "last"

    def lower_rate(self, why: str, over: float = 3.0) -> Change:
        """The learning rate divided."""
        return Change(path="training.learning_rate", value=float(f"{self.recipe.training.learning_rate / over:.1e}"), why=why)

    def epochs_until(self, epoch: float, why: str) -> Change:
        """The run ended at this epoch."""
        if self.recipe.training.max_steps is not None:
            per_epoch = self.series.train["step"][-1] / self.series.train["epoch"][-1]
            return Change(path="training.max_steps", value=max(1, round(epoch * per_epoch)), why=why)
        return Change(path="training.epochs", value=max(0.1, round(epoch, 1)), why=why)


Rule = Callable[[Case], Iterator[Finding]]


def look(run: RunFolder, recipe: Recipe, measured: Series, events: Sequence[Mapping[str, Any]]) -> Case:
    """The case of a run of this recipe, which has measured this and told these events."""
    return Case(
        recipe=recipe,
        series=measured,
        planned=Planned.of(run),
        rows=rows.kept(run, _compared(measured)),
        events=events,
        ranks=newest_ranks(run.ranks),
        scores=tuple(_scores(run)),
        answers=() if recipe.rl == "none" else rollouts.answers(run),
    )


def newest_ranks(path: Path) -> list[Mapping[str, Any]]:
    """The newest lines of a ranks.jsonl, in its order; none where there is none."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")
    return [record for line in lines[:-1] if (record := jsonl.record(line)) is not None and record.keys() >= OF_A_RANK]


def _compared(measured: Series) -> set[int]:
    validations = measured.validation.finite
    if not len(validations):
        return set()
    best = validations["loss"].argmin()
    return {int(step) for step in (validations["step"][best], *validations["step"][-COMPARED:])}


def _scores(run: RunFolder) -> Iterator[Scored]:
    """The tasks of all evaluations in the folder; a file that is damaged has none."""
    for path in sorted(run.path.glob("evaluations/*/scores.json")):
        try:
            tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
            for name, task in tasks.items():
                numbers = {"value": float(task["value"]), "low": float(task["low"]), "n": int(task["n"])}
                yield Scored(evaluation=path.parent.name, task=name, metric=task["metric"], **numbers)  # type: ignore[arg-type]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue

"""In what several runs differ: their recipes, and their scores on the same tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.core.errors import LuthierError
from luthier.evaluate.report import TaskScores
from luthier.recipe.load import values_of
from luthier.report.record import Record

ABSENT = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A key of the recipe, and what each run has there."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A task's metric, and what the tuned model of each run has there, by the run's name."""

    name: str
    scores: Mapping[str, TaskScores]


def differences(records: Sequence[Record]) -> list[Difference]:
    """The keys that are not the same in all, by name, without the runs' own; a damaged recipe has none."""
    recipes = [_values(record.recipe) for record in records]
    keys = sorted({key for recipe in recipes for key in recipe} - {"name"})
    found = [Difference(key=key, values=tuple(recipe.get(key, ABSENT) for recipe in recipes)) for key in keys]
    return [each for each in found if len(set(each.values)) > 1]


def scored(records: Sequence[Record]) -> list[Scored]:
    """The tasks that any of them was asked."""
    found: dict[str, dict[str, TaskScores]] = {}
    for record in records:
        for task, scores in record.evaluations["tuned"].tasks.items() if "tuned" in record.evaluations else ():
            found.setdefault(f"{task}.{scores.metric}", {})[record.run.name] = scores
    return [Scored(name=name, scores=scores) for name, scores in found.items()]


def _values(text: str) -> dict[str, str]:
    try:
        return values_of(text)
    except LuthierError:
        return {}

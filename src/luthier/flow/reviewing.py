"""The verb that asks people, and what they said: review, reviewed, write_ratings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core.errors import UsageError

if TYPE_CHECKING:
    from luthier.evaluate.people import People
    from luthier.evaluate.report import Report
    from luthier.recipe.schema import Recipe
    from luthier.review.asking import Review
    from luthier.review.export import Written
    from luthier.review.pair import Pair
    from luthier.review.results import Rated, Results
    from luthier.review.store import Ratings
    from luthier.runs.store import RunFolder


def review(name: str, rows: int | Literal["recipe"] = "recipe") -> Review:
    """The rows of a run that people are to rate, drawn from the answers that its evaluations kept, and where their ratings go.

    Raises UsageError where tuned or base have not answered yet, or everywhere the same.
    """
    from luthier.review.asking import Review
    from luthier.review.pair import draw
    from luthier.review.store import Ratings
    from luthier.runs.store import find, own_recipe

    run = find(name)
    recipe = own_recipe(run)
    drawn = draw(*_answers(run), rows=recipe.review.rows if rows == "recipe" else rows, seed=recipe.seed)
    if not drawn.pairs:
        what = f"tuned and base answer all {drawn.num_rows} rows that both were asked in the same words: there is nothing to prefer"
        raise UsageError(what, where=str(run.path))
    ratings = Ratings(run.ratings)
    ratings.begin(drawn.pairs)
    return Review(run=run.name, draw=drawn, rubric=recipe.review.rubric, seed=recipe.seed, ratings=ratings)


def reviewed(name: str) -> Results:
    """What people have said of a run's answers: preferences and scores with intervals, and how far they agree."""
    from luthier.review.results import results
    from luthier.runs.store import find, own_recipe

    run = find(name)
    return results(_ratings(run).standing(), _pairs(run), own_recipe(run).review.rubric)


def write_ratings(name: str, path: Path) -> Written:
    """Write what people said of a run into a .csv or .jsonl, or what they preferred into a .dpo.jsonl of prompt, chosen and rejected."""
    from luthier.review.export import write
    from luthier.runs.store import find

    ratings = _ratings(find(name))
    return write(path, ratings.standing(), ratings.pairs())


def people(run: RunFolder, recipe: Recipe) -> People:
    """What people have said of a run's present answers, where its recipe wants to know it."""
    from luthier.evaluate.people import NOBODY
    from luthier.review.results import people as of

    if not recipe.asks_people:
        return NOBODY
    ratings = _ratings(run).standing() if run.ratings.exists() else ()
    said = of(run.name, ratings, _pairs(run), recipe.review)
    return said if recipe.decision.bounds_people else replace(said, measured={})  # what is not bounded is no part of a look


def rated_pairs(run: RunFolder) -> Sequence[Rated]:
    """The run's present answers beside its base's that people preferred one of, and nobody has flagged; none where nobody was asked."""
    from luthier.review.results import rated

    if not run.ratings.exists():
        return ()
    pairs = {pair.id: pair for pair in _pairs(run)}
    found, _ = rated([rating for rating in _ratings(run).standing() if rating.pair in pairs], pairs)
    return [each for each in found if math.isfinite(each.preference)]


def _ratings(run: RunFolder) -> Ratings:
    from luthier.review.store import Ratings

    if not run.ratings.exists():
        raise UsageError(f"nobody has rated answers of run {run.name}", change=f"luthier review {run.name} asks people")
    return Ratings(run.ratings)


def _pairs(run: RunFolder) -> list[Pair]:
    from luthier.review.pair import pairs

    return pairs(*_answers(run))


def _answers(run: RunFolder) -> tuple[Report, Report]:
    """Of the tuned model and of its base, as `luthier decide` leaves them."""
    from luthier.evaluate import report
    from luthier.runs.store import own_recipe

    for name in ("tuned", "base"):
        if not (run.evaluation(name) / "predictions.jsonl").exists():
            recipe = own_recipe(run)
            other = "" if recipe.asks_people or recipe.evaluation.baseline == "base" else " --baseline base"
            change = f"luthier decide {run.name}{other} makes them"
            raise UsageError(f"there are no answers of the {name} model in run {run.name}", where=str(run.path), change=change)
    return report.read(run.evaluation("tuned")), report.read(run.evaluation("base"))

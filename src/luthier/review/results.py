"""What people said, summed up: which answers they prefer, how they score them, how far they agree."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluate.metrics import Measurement, Sample
from luthier.evaluate.people import People
from luthier.recipe.proof import PEOPLE, PREFERRED, Review
from luthier.review.agreement import Agreement, Opinion, agreement
from luthier.review.pair import Pair, Whose
from luthier.review.store import Rating
from luthier.score import intervals
from luthier.score.intervals import Interval

WORTH: Mapping[str, float] = {"tuned": 1.0, "tie": 0.5, "base": 0.0}
"""Of a preference, to the tuned model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """A pair that nobody has flagged, and all that was said of it."""

    pair: Pair
    ratings: Sequence[Rating]

    @property
    def preference(self) -> float:
        """From 0 (the base's answer) to 1 (the tuned model's), the mean of those who said it; NaN where nobody did."""
        return _mean(WORTH[rating.preferred] for rating in self.ratings if rating.preferred in WORTH)

    def score(self, criterion: str, whose: Whose) -> float:
        """1 … 5, the mean of those who gave it; NaN where nobody did."""
        given = (rating.scores.get(whose, {}).get(criterion) for rating in self.ratings)
        return _mean(float(score) for score in given if score is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Share of rows on which the tuned model's answer is preferred, a tie counting half, and how many rows that are."""

    share: Interval
    won: int
    tied: int
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """Mean scores (1 … 5) of both, and of their differences row by row, on the rows where both were scored."""

    tuned: Interval
    base: Interval
    difference: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that was said of the answers that the run has now."""

    reviewers: Mapping[str, int]
    """Rows that each has rated."""
    num_flagged: int
    """Rows that somebody has flagged; they count nowhere else."""
    num_stale: int
    """Ratings of answers that the run gave before it was evaluated anew."""
    preference: Preference
    groups: Mapping[str, Preference]
    criteria: Mapping[str, Criterion]
    agreement: Mapping[str, Agreement]
    """On preferences, and on each criterion."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "reviewers": dict(self.reviewers),
            "flagged": self.num_flagged,
            "stale": self.num_stale,
            PREFERRED: _told(self.preference),
            "groups": {name: _told(group) for name, group in self.groups.items()},
            "criteria": {
                name: {"tuned": _ends(found.tuned), "base": _ends(found.base), "difference": _ends(found.difference)}
                for name, found in self.criteria.items()
            },
            "agreement": {name: {"alpha": found.alpha, "shared": found.num_shared} for name, found in self.agreement.items()},
        }


def results(ratings: Sequence[Rating], pairs: Iterable[Pair], rubric: Iterable[str]) -> Results:
    """What was said of these pairs. Several reviewers of a row are one row: their mean."""
    asked = {pair.id: pair for pair in pairs}
    current = [rating for rating in ratings if rating.pair in asked]
    found, flagged = rated(current, asked)
    counted = [rating for each in found for rating in each.ratings]
    groups = sorted({each.pair.group for each in found})
    return Results(
        reviewers=dict(sorted(Counter(rating.reviewer for rating in current).items())),
        num_flagged=len(flagged),
        num_stale=len(ratings) - len(current),
        preference=_preference(found),
        groups={name: _preference([each for each in found if each.pair.group == name]) for name in groups if len(groups) > 1},
        criteria={name: _criterion(found, name) for name in rubric},
        agreement={PREFERRED: _agree(counted, _preferences)} | {name: _agree(counted, _scores(name)) for name in rubric},
    )


def rated(ratings: Sequence[Rating], pairs: Mapping[str, Pair]) -> tuple[list[Rated], set[str]]:
    """The pairs that were rated and that nobody flagged, and the ids of those that somebody did."""
    flagged = {rating.pair for rating in ratings if rating.flagged}
    said: dict[str, list[Rating]] = {}
    for rating in ratings:
        if rating.pair not in flagged:
            said.setdefault(rating.pair, []).append(rating)
    return [Rated(pair=pairs[name], ratings=given) for name, given in said.items()], flagged


def people(run: str, ratings: Sequence[Rating], pairs: Iterable[Pair], review: Review) -> People:
    """The same for the gate: a metric for each of the recipe's, which nobody looks at before the rows are rated that have to be.

    These are no more than there are: where both answered the same, or somebody flagged the row, there is nothing to prefer.
    """
    asked = {pair.id: pair for pair in pairs if pair.tuned != pair.base}
    found, flagged = rated([rating for rating in ratings if rating.pair in asked], asked)
    num_rated = sum(math.isfinite(each.preference) for each in found)
    num_required = min(review.required, len(asked) - len(flagged))
    if num_rated < num_required:
        found = []
    preferred = _measured(PREFERRED, found, [each.preference for each in found])
    scored = (_measured(name, found, [(each.score(name, "tuned") - 1) / 4 for each in found]) for name in review.rubric)
    measured = {metric.metric: metric for metric in (preferred, *scored)}
    return People(run=run, measured=measured, num_rated=num_rated, num_required=num_required)


def _preference(found: Sequence[Rated]) -> Preference:
    known = [each for each in found if math.isfinite(each.preference)]
    values = [each.preference for each in known]
    return Preference(
        share=intervals.scores(values, keys=[each.pair.key for each in known]),
        won=sum(value > 0.5 for value in values),
        tied=sum(value == 0.5 for value in values),
        lost=sum(value < 0.5 for value in values),
    )


def _criterion(found: Sequence[Rated], name: str) -> Criterion:
    both = [(each.score(name, "tuned"), each.score(name, "base"), each.pair.key) for each in found]
    both = [(tuned, base, key) for tuned, base, key in both if math.isfinite(tuned) and math.isfinite(base)]
    keys = [key for _, _, key in both]
    return Criterion(
        tuned=intervals.mean([tuned for tuned, _, _ in both], least=1, most=5, keys=keys),
        base=intervals.mean([base for _, base, _ in both], least=1, most=5, keys=keys),
        difference=intervals.mean([tuned - base for tuned, base, _ in both], least=-4, most=4, keys=keys),
    )


def _measured(name: str, found: Sequence[Rated], numbers: Sequence[float]) -> Measurement:
    """Of those that have the number."""
    known = [(each.pair, number) for each, number in zip(found, numbers, strict=True) if math.isfinite(number)]
    values = tuple(number for _, number in known)
    return Measurement(
        metric=f"{PEOPLE}.{name}",
        unit="share",
        statistic="mean",
        higher_is_better=True,
        value=_mean(values),
        n=len(values),
        sample=Sample(values=values, keys=tuple(pair.key for pair, _ in known), rows=tuple(pair.id for pair, _ in known)),
    )


def _agree(ratings: Iterable[Rating], opinions: Callable[[Rating], list[Opinion]]) -> Agreement:
    return agreement([opinion for rating in ratings for opinion in opinions(rating)])


def _preferences(rating: Rating) -> list[Opinion]:
    if rating.preferred not in WORTH:
        return []
    return [Opinion(reviewer=rating.reviewer, of=rating.pair, value=WORTH[rating.preferred])]


def _scores(criterion: str) -> Callable[[Rating], list[Opinion]]:
    def opinions(rating: Rating) -> list[Opinion]:
        given = ((whose, scores[criterion]) for whose, scores in rating.scores.items() if criterion in scores)
        return [Opinion(reviewer=rating.reviewer, of=f"{rating.pair} {whose}", value=float(score)) for whose, score in given]

    return opinions


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan


def _told(found: Preference) -> dict[str, Any]:
    return {**_ends(found.share), "won": found.won, "tied": found.tied, "lost": found.lost}


def _ends(found: Interval) -> dict[str, float | int]:
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}

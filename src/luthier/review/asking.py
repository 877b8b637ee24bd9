"""What a reviewer is shown and says: two answers without their names.

A card is made of the pair's sorted answers and a hash of who is asked. It would be the same if base and tuned were exchanged; so nothing
that is made of it can tell which is which.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from luthier.core.errors import UsageError
from luthier.review.pair import Draw, Pair, Whose
from luthier.review.store import Preferred, Rating, Ratings

Side = Literal["a", "b"]
Chosen = Literal["a", "b", "tie", "none"]
OTHER: Mapping[Side, Side] = {"a": "b", "b": "a"}
LONGEST_COMMENT = 10_000


class By(BaseModel):
    """Who is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reviewer: Annotated[str, Field(pattern=r"^\w([\w .-]{0,38}[\w.-])?$")]
    """A name of letters, digits, blanks, `.`, `_` and `-`."""


class Said(By):
    """What a reviewer says of a card, as the page sends it."""

    pair: str
    preferred: Chosen = "none"
    scores: Mapping[Side, Mapping[str, Annotated[int, Field(ge=1, le=5)]]] = {}
    comment: Annotated[str, Field(max_length=LONGEST_COMMENT)] = ""
    flagged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One row as a reviewer sees it, and what he or she has said of it before."""

    id: str
    place: int
    task: str
    group: str
    origin: str
    messages: Sequence[Mapping[str, Any]]
    reference: str
    answers: Mapping[Side, str]
    said: Said | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """The rows of a run that people are asked."""

    run: str
    draw: Draw
    rubric: Mapping[str, str]
    seed: int
    ratings: Ratings

    def card(self, reviewer: str, pair: str) -> Card:
        """One row for this reviewer; raises UsageError where there is none of this id."""
        place = self._place(pair)
        found = self.draw.pairs[place]
        sides = self._sides(found, reviewer)
        said = next((rating for rating in self.ratings.standing() if (rating.reviewer, rating.pair) == (reviewer, pair)), None)
        return Card(
            id=pair,
            place=place,
            task=found.task,
            group=found.group,
            origin=found.origin,
            messages=found.messages,
            reference=found.reference,
            answers=dict(sorted({sides["tuned"]: found.tuned, sides["base"]: found.base}.items())),
            said=None if said is None else _as_said(said, sides),
        )

    def rate(self, said: Said) -> None:
        """Keep what was said; raises UsageError where it is nothing, or of what is not asked."""
        found = self.draw.pairs[self._place(said.pair)]
        if said.preferred == "none" and not said.flagged:
            raise UsageError("say which answer is better, or that they are alike, or flag the row")
        if unknown := {name for scores in said.scores.values() for name in scores} - self.rubric.keys():
            raise UsageError(f"the rubric has no criterion {min(unknown)!r:.80}")
        whose = {side: name for name, side in self._sides(found, said.reviewer).items()}
        scores = {whose[side]: dict(given) for side, given in said.scores.items() if given}
        self.ratings.add(
            Rating(
                reviewer=said.reviewer,
                pair=said.pair,
                preferred=_meant(said.preferred, whose),
                scores=scores,
                comment=said.comment,
                flagged=said.flagged,
            )
        )

    def next(self, reviewer: str) -> str | None:
        """The first row that the reviewer has not rated; None where all are."""
        done = {rating.pair for rating in self.ratings.standing() if rating.reviewer == reviewer}
        return next((pair.id for pair in self.draw.pairs if pair.id not in done), None)

    def beside(self, pair: str, step: int) -> str | None:
        """The row so many places further on, whether it is rated or not; None where there is none."""
        place = self._place(pair) + step
        return self.draw.pairs[place].id if 0 <= place < len(self.draw.pairs) else None

    def progress(self) -> dict[str, int]:
        """How many of the rows each reviewer has rated, by name."""
        asked = {pair.id for pair in self.draw.pairs}
        return dict(sorted(Counter(rating.reviewer for rating in self.ratings.standing() if rating.pair in asked).items()))

    def _place(self, pair: str) -> int:
        for place, found in enumerate(self.draw.pairs):
            if found.id == pair:
                return place
        raise UsageError("there is no such row in this review", change="open it anew: other rows may have been drawn")

    def _sides(self, pair: Pair, reviewer: str) -> dict[Whose, Side]:
        """Where each answer stands: the one that comes first in the alphabet at a or b, by the toss of a hash."""
        tossed: Side = "a" if hashlib.sha256(f"{self.seed}\0{reviewer}\0{pair.id}".encode()).digest()[0] % 2 else "b"
        tuned = tossed if pair.tuned < pair.base else OTHER[tossed]
        return {"tuned": tuned, "base": OTHER[tuned]}


def _as_said(rating: Rating, sides: Mapping[Whose, Side]) -> Said:
    scores = {sides[whose]: dict(given) for whose, given in rating.scores.items()}
    return Said(
        reviewer=rating.reviewer,
        pair=rating.pair,
        preferred=_shown(rating.preferred, sides),
        scores=scores,
        comment=rating.comment,
        flagged=rating.flagged,
    )


def _meant(chosen: Chosen, whose: Mapping[Side, Whose]) -> Preferred:
    match chosen:
        case "a" | "b":
            return whose[chosen]
    return chosen


def _shown(preferred: Preferred, sides: Mapping[Whose, Side]) -> Chosen:
    match preferred:
        case "tuned" | "base":
            return sides[preferred]
    return preferred

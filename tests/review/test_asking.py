"""A reviewer sees two answers, and nothing by which to tell whose they are."""

from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from luthier.core.errors import UsageError
from luthier.review.asking import By, Review, Said
from luthier.review.pair import Pair
from tests.review.rows import pair, prefer, review_of, side

PAIRS = [pair(number) for number in range(200)]


@pytest.fixture
def review(tmp_path: Path) -> Review:
    return review_of(PAIRS, tmp_path)


def exchanged(pair: Pair) -> Pair:
    return pair.model_copy(update={"tuned": pair.base, "base": pair.tuned})


def test_a_card_is_the_same_if_base_and_tuned_are_exchanged(review: Review, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = review_of([exchanged(each) for each in PAIRS], tmp_path / "other")
    for name in ("ann", "ben"):
        assert [review.card(name, each.id) for each in PAIRS] == [other.card(name, each.id) for each in PAIRS]


def test_each_model_stands_on_either_side_as_often(review: Review) -> None:
    sides = Counter(side(review, "ann", each, "tuned") for each in PAIRS)
    assert 70 < sides["a"] < 130


def test_sides_differ_between_reviewers_and_stay_for_one(review: Review) -> None:
    def sides(name: str) -> list[str]:
        return [side(review, name, each, "tuned") for each in PAIRS]

    assert sides("ann") == sides("ann") != sides("ben")
    assert 60 < sum(one == other for one, other in zip(sides("ann"), sides("ben"), strict=True)) < 140


def test_what_is_said_of_a_side_is_kept_of_the_model(review: Review) -> None:
    for each in PAIRS[:20]:
        prefer(review, "ann", each, "tuned")
        prefer(review, "ben", each, "base")
    kept = {(rating.reviewer, rating.preferred) for rating in review.ratings.standing()}
    assert kept == {("ann", "tuned"), ("ben", "base")}


def test_scores_go_with_the_answer_and_come_back_on_its_side(review: Review) -> None:
    of = PAIRS[0]
    at = side(review, "ann", of, "tuned")
    other = "b" if at == "a" else "a"
    said = Said(reviewer="ann", pair=of.id, preferred="tie", scores={at: {"helpful": 5}, other: {"helpful": 2}}, comment="why?")
    review.rate(said)
    (kept,) = review.ratings.standing()
    assert kept.scores == {"tuned": {"helpful": 5}, "base": {"helpful": 2}}
    assert review.card("ann", of.id).said == said
    assert review.card("ben", of.id).said is None


def test_the_next_row_is_the_first_that_is_not_rated_and_undo_leads_back(review: Review) -> None:
    assert review.next("ann") == PAIRS[0].id
    prefer(review, "ann", PAIRS[0], "tuned")
    prefer(review, "ann", PAIRS[2], "tuned")
    assert (review.next("ann"), review.next("ben")) == (PAIRS[1].id, PAIRS[0].id)
    assert review.ratings.undo("ann") == PAIRS[2].id
    assert review.progress() == {"ann": 1}


def test_a_reviewer_who_has_rated_all_has_no_next_row(tmp_path: Path) -> None:
    review = review_of(PAIRS[:2], tmp_path)
    for each in PAIRS[:2]:
        prefer(review, "ann", each, "base")
    assert review.next("ann") is None
    assert [review.beside(PAIRS[0].id, step) for step in (-1, 1)] == [None, PAIRS[1].id]


def test_a_row_may_be_flagged_without_a_preference_and_else_wants_one(review: Review) -> None:
    with pytest.raises(UsageError, match="say which answer is better"):
        review.rate(Said(reviewer="ann", pair=PAIRS[0].id))
    review.rate(Said(reviewer="ann", pair=PAIRS[0].id, flagged=True))
    assert [rating.preferred for rating in review.ratings.standing()] == ["none"]


def test_what_is_not_asked_is_refused(review: Review) -> None:
    with pytest.raises(UsageError, match="no criterion 'brave'"):
        review.rate(Said(reviewer="ann", pair=PAIRS[0].id, preferred="a", scores={"a": {"brave": 3}}))
    with pytest.raises(UsageError, match="no such row"):
        review.rate(Said(reviewer="ann", pair="0123456789abcdef", preferred="a"))
    assert review.ratings.standing() == []


@pytest.mark.parametrize(
    "given",
    [
        {"preferred": "tuned"},
        {"scores": {"a": {"helpful": 6}}},
        {"scores": {"tuned": {"helpful": 3}}},
        {"reviewer": ""},
        {"reviewer": "<b>"},
        {"reviewer": "ann "},
        {"comment": "x" * 10_001},
        {"comment": "half \ud800"},
        {"whose": "a"},
    ],
)
def test_what_cannot_be_meant_is_no_rating(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Said.model_validate({"reviewer": "ann", "pair": "p", "preferred": "a", **given})


@pytest.mark.parametrize("name", ["ann", "Ann B.", "Jürgen", "r-2", "山田"])
def test_names_are_those_of_people(name: str) -> None:
    assert By(reviewer=name).reviewer == name

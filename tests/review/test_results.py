"""What was said, summed up: by row, with intervals, without what was flagged."""

import math
from pathlib import Path

import pytest

from luthier.evaluate.people import People
from luthier.recipe.proof import Review as Section
from luthier.review.pair import Whose
from luthier.review.results import people, results
from luthier.review.store import Preferred, Rating
from luthier.score import intervals
from tests.review.rows import pair

PAIRS = [pair(number, group="opening" if number < 6 else "ending") for number in range(10)]


def rating(number: int, preferred: Preferred, reviewer: str = "ann", *, flagged: bool = False, **scores: int) -> Rating:
    """Scores are given as `tuned=4, base=2`, of one criterion."""
    given: dict[Whose, dict[str, int]] = {whose: {"helpful": scores[whose]} for whose in ("tuned", "base") if whose in scores}
    return Rating(reviewer=reviewer, pair=PAIRS[number].id, preferred=preferred, flagged=flagged, scores=given)


def test_seven_of_ten_rows_have_the_exact_interval() -> None:
    found = results([rating(number, "tuned" if number < 7 else "base") for number in range(10)], PAIRS, ()).preference
    assert (found.share.value, found.won, found.tied, found.lost) == (0.7, 7, 0, 3)
    assert (found.share.low, found.share.high) == pytest.approx((0.3475, 0.9333), abs=5e-5)  # Clopper & Pearson


def test_a_tie_counts_half() -> None:
    found = results([rating(0, "tuned"), rating(1, "tie"), rating(2, "base"), rating(3, "tie")], PAIRS, ()).preference
    assert (found.share.value, found.won, found.tied, found.lost) == (0.5, 1, 2, 1)


def test_several_reviewers_of_a_row_are_one_row() -> None:
    said = [rating(0, "tuned", name) for name in ("ann", "ben", "cleo")] + [rating(1, "base")]
    found = results(said, PAIRS, ())
    assert (found.preference.share.value, found.preference.share.n) == (0.5, 2)
    assert found.reviewers == {"ann": 2, "ben": 1, "cleo": 1}


def test_rows_that_hang_together_are_worth_less() -> None:
    alone = [pair(number, key=str(number)) for number in range(40)]
    together = [pair(number, key=str(number // 10)) for number in range(40)]
    said = [Rating(reviewer="ann", pair=each.id, preferred="tuned" if number % 20 < 13 else "base") for number, each in enumerate(alone)]
    apart, clustered = (results(said, pairs, ()).preference.share for pairs in (alone, together))
    assert apart == intervals.exact(26, 40)
    assert clustered.value == apart.value and clustered.high - clustered.low > apart.high - apart.low


def test_a_flagged_row_counts_nowhere_whoever_flags_it() -> None:
    found = results([rating(0, "tuned"), rating(0, "base", "ben", flagged=True), rating(1, "base")], PAIRS, ())
    assert (found.num_flagged, found.preference.won, found.preference.lost) == (1, 0, 1)
    assert found.agreement["preferred"].num_shared == 0


def test_groups_have_their_own() -> None:
    found = results([rating(0, "tuned"), rating(1, "tuned"), rating(7, "base")], PAIRS, ())
    assert {name: (group.won, group.lost) for name, group in found.groups.items()} == {"opening": (2, 0), "ending": (0, 1)}


def test_scores_are_compared_row_by_row() -> None:
    said = [rating(number, "tie", tuned=3 + number % 3, base=2 + number % 3) for number in range(10)]
    found = results(said, PAIRS, ["helpful"]).criteria["helpful"]
    assert (found.tuned.value, found.base.value, found.difference.value, found.difference.n) == (3.9, 2.9, 1.0, 10)
    assert 1 < found.base.low < 2.9 < found.base.high < 5
    lone = results([rating(0, "tuned", tuned=4)], PAIRS, ["helpful"]).criteria["helpful"]
    assert lone.difference.n == 0 and math.isnan(lone.difference.value)


def test_agreement_is_on_what_two_reviewers_have_judged() -> None:
    said = [rating(number, "tuned" if number < 3 else "base", name, tuned=4) for number in range(5) for name in ("ann", "ben")]
    found = results([*said, rating(9, "tie")], PAIRS, ["helpful"]).agreement
    assert (found["preferred"].alpha, found["preferred"].num_shared) == (pytest.approx(1), 5)
    assert (found["helpful"].alpha, found["helpful"].num_shared) == (None, 5)  # all of them are a 4


def test_ratings_of_answers_that_are_no_more_are_counted_apart() -> None:
    found = results([rating(0, "tuned"), rating(1, "tuned")], PAIRS[1:], ())
    assert (found.num_stale, found.preference.won, found.reviewers) == (1, 1, {"ann": 1})


def test_to_json_has_no_number_that_is_none(tmp_path: Path) -> None:
    told = results([], PAIRS, ["helpful"]).to_json()
    assert told["reviewers"] == {} and told["preferred"]["n"] == 0 and told["agreement"]["helpful"] == {"alpha": None, "shared": 0}


def test_the_gate_is_told_rows_and_scores_between_0_and_1() -> None:
    said = [rating(0, "tuned", tuned=5), rating(1, "tie", tuned=3), rating(2, "none", flagged=True)]
    found: People = people("games", said, PAIRS, Section(rubric={"helpful": "?"}, required=2))
    assert (found.num_rated, found.num_required) == (2, 2)
    assert {name: (metric.value, metric.n) for name, metric in found.measured.items()} == {
        "review.preferred": (0.75, 2),
        "review.helpful": (0.75, 2),
    }


def test_no_more_rows_have_to_be_rated_than_there_are() -> None:
    same = [each.model_copy(update={"base": each.tuned}) for each in PAIRS[4:]]
    found = people("games", [rating(0, "none", flagged=True)], [*PAIRS[:4], *same], Section(required=9))
    assert (found.num_rated, found.num_required) == (0, 3)


def test_the_gate_looks_at_nothing_before_all_rows_are_rated_that_have_to_be() -> None:
    found = people("games", [rating(0, "tuned"), rating(1, "tuned")], PAIRS, Section(required=3))
    assert (found.num_rated, found.measured["review.preferred"].n, found.evidence) == (2, 0, "")

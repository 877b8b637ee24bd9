"""The gate and people: bounds on what they say, and rows that they have to rate."""

import math

import pytest

from luthier.evaluate.gate import Reviewed, Verdict, decide, evidence
from luthier.evaluate.metrics import Measurement, Sample
from luthier.evaluate.people import NOBODY, People
from luthier.recipe.proof import Decision
from tests.evaluate.reports import report, right

TUNED = report(right(183, 183))
GOOD = Decision(deploy={"answers.exact": ">= 98 %"})


def said(values: list[float], required: int = 0, metric: str = "review.preferred") -> People:
    measured = Measurement(
        metric=metric,
        unit="share",
        statistic="mean",
        higher_is_better=True,
        value=sum(values) / len(values) if values else math.nan,
        n=len(values),
        sample=Sample(values=tuple(values), keys=("",) * len(values), rows=tuple(map(str, range(len(values))))),
    )
    return People(run="games", measured={metric: measured}, num_rated=len(values), num_required=required)


def judged(people: People, rule: Decision = GOOD, look: int = 1) -> Verdict:
    return decide(Reviewed(report=TUNED, people=people), {}, rule, look=look)


def test_a_review_that_is_missing_is_not_enough_data() -> None:
    verdict = judged(said([1.0] * 12, required=50))
    assert (verdict.decision, verdict.more_rows) == ("not_enough_data", 38)
    assert verdict.reasons[0] == "the review is missing: people have rated 12 rows, and have to rate 50: luthier review games"
    assert verdict.to_json()["bounds"][0] == {
        "metric": "review", "bound": ">= 50 rows", "outcome": "undecided", "value": 12, "low": 12, "high": 12, "n": 12, "rows_needed": 50
    }  # fmt: skip


def test_a_review_that_is_there_is_told_and_deploys() -> None:
    verdict = judged(said([0.0] * 50, required=50))
    assert verdict.decision == "deploy"
    assert "people have rated 50 rows, and have to rate 50" in verdict.reasons


def test_where_no_people_are_asked_nothing_is_said_of_them() -> None:
    assert judged(NOBODY).to_json() == decide(TUNED, {}, GOOD).to_json()


def test_a_missing_review_stops_neither_iterate_nor_abort() -> None:
    missing = said([], required=50)
    assert judged(missing, Decision(deploy={"answers.exact": "< 0.5"})).decision == "iterate"
    assert judged(missing, Decision(deploy={"answers.exact": "< 0.5"}, abort={"answers.exact": "> 0.9"})).decision == "abort"


@pytest.mark.parametrize(
    ("won", "of", "decision"),
    [(40, 50, "deploy"), (28, 50, "not_enough_data"), (10, 50, "iterate"), (0, 0, "not_enough_data")],
)
def test_what_people_prefer_can_be_bounded(won: int, of: int, decision: str) -> None:
    verdict = judged(said(right(won, of)), Decision(deploy={"review.preferred": "> 0.5"}))
    assert verdict.decision == decision


def test_a_bound_on_what_nobody_has_said_tells_whom_to_ask() -> None:
    verdict = judged(said([]), Decision(deploy={"review.preferred": "> 0.5"}))
    assert verdict.reasons == ("review.preferred is not known before people have rated the answers (luthier review): > 0.5 is not shown",)
    assert verdict.findings == ()


def test_ties_widen_the_interval_by_resampling() -> None:
    rule = Decision(deploy={"review.preferred": "> 0.5"})
    assert judged(said([1.0] * 20 + [0.5] * 25 + [0.0] * 5), rule).decision == "deploy"
    assert judged(said([1.0] * 8 + [0.5] * 37 + [0.0] * 5), rule).decision == "not_enough_data"


def test_a_later_look_at_more_ratings_wants_more() -> None:
    people, rule = said(right(34, 50)), Decision(deploy={"review.preferred": "> 0.5"})
    assert [judged(people, rule, look).decision for look in (1, 2)] == ["deploy", "not_enough_data"]


def test_what_people_say_is_told_apart_from_the_answers_it_is_about() -> None:
    alone, one, other = (evidence(TUNED, people=people) for people in (NOBODY, said(right(12, 20)), said(right(13, 20))))
    assert alone == evidence(TUNED) == evidence(TUNED, people=said([]))
    assert one != other and {one.partition("+")[0], other.partition("+")[0]} == {alone}

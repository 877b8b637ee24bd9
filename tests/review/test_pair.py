"""Which rows people are asked."""

from collections import Counter

import pytest

from luthier.evaluate.report import Report
from luthier.review.pair import Draw, draw, shares
from tests.review.rows import answered, pair

GROUPS = ["opening"] * 60 + ["ending"] * 30 + ["puzzle"] * 10


def models(right: list[bool] | None = None) -> tuple[Report, Report]:
    """A hundred rows of three groups that both answer, each in other words."""
    wrong = [False] * 100
    tuned = answered([f"Castle {number}." for number in range(100)], groups=GROUPS, right=right or wrong)
    return tuned, answered([f"Resign {number}." for number in range(100)], groups=GROUPS, right=wrong)


def groups(drawn: Draw) -> Counter[str]:
    return Counter(each.group for each in drawn.pairs)


@pytest.mark.parametrize(
    ("sizes", "total", "taken"),
    [
        ([90, 9, 1], 10, [8, 1, 1]),
        ([60, 30, 10], 10, [6, 3, 1]),
        ([5, 5, 5], 4, [2, 1, 1]),
        ([3, 2], 50, [3, 2]),
        ([50, 1], 1, [1, 0]),
        ([], 5, []),
    ],
)
def test_each_stratum_gets_its_share_and_at_least_one_row(sizes: list[int], total: int, taken: list[int]) -> None:
    assert shares(sizes, total) == taken


def test_rows_are_drawn_by_group() -> None:
    assert groups(draw(*models(), rows=20, seed=1)) == {"opening": 12, "ending": 6, "puzzle": 2}


def test_rows_that_the_scorer_tells_apart_are_a_stratum_of_their_own() -> None:
    right = [number % 10 == 0 for number in range(100)]  # 6 openings, 3 endings, 1 puzzle are right where the base is wrong
    drawn = draw(*models(right), rows=20, seed=1)
    assert Counter((each.group, each.apart) for each in drawn.pairs) == {
        ("opening", False): 11, ("opening", True): 1, ("ending", False): 5, ("ending", True): 1, ("puzzle", False): 1, ("puzzle", True): 1
    }  # fmt: skip


def test_nobody_is_asked_where_both_say_the_same() -> None:
    drawn = draw(answered(["Castle.", "Nf3."]), answered(["Castle.", "Resign."]), rows=50, seed=1)
    assert ([each.tuned for each in drawn.pairs], drawn.num_rows, drawn.num_same) == (["Nf3."], 2, 1)


def test_rows_that_only_one_model_was_asked_are_no_pair() -> None:
    drawn = draw(answered(["Castle.", "Nf3."]), answered(["Resign."]), rows=50, seed=1)
    assert (len(drawn.pairs), drawn.num_rows) == (1, 1)


def test_a_larger_draw_has_the_smaller_one_in_it() -> None:
    small, large = (draw(*models(), rows=rows, seed=1) for rows in (10, 40))
    assert {each.id for each in small.pairs} < {each.id for each in large.pairs}


def test_the_draw_follows_from_the_seed_alone() -> None:
    one, same, other = (draw(*models(), rows=20, seed=seed).pairs for seed in (1, 1, 2))
    assert one == same != other
    assert [each.origin for each in one] != sorted(each.origin for each in one)  # nor are rows asked group by group


def test_an_id_is_the_same_whosever_the_answers_are() -> None:
    one = pair()
    exchanged = one.model_copy(update={"tuned": one.base, "base": one.tuned})
    assert exchanged.id == one.id != pair(1).id

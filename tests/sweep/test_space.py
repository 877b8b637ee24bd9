"""What a sweep tries: values, ranges, levers, and the names of the runs."""

import pytest

from luthier.core.errors import UsageError
from luthier.core.finding import Change
from luthier.recipe.schema import RUN_NAME
from luthier.sweep.options import Asked
from luthier.sweep.space import Between, Listed, at_edges, axis, draw, grid, levers, trials

RANK, RATE = axis("lora.r=16,32,64"), axis("training.learning_rate=1e-4,3e-4")


def test_a_grid_is_every_combination_in_order() -> None:
    assert grid([RANK, RATE]) == [(f"lora.r={r}", f"training.learning_rate={rate}") for r in (16, 32, 64) for rate in ("1e-4", "3e-4")]


def test_fields_that_belong_together_change_together() -> None:
    assert grid([axis("lora.r:lora.alpha=16:32,32:64")]) == [("lora.r=16", "lora.alpha=32"), ("lora.r=32", "lora.alpha=64")]


def test_a_value_may_be_a_list_or_quoted_and_keeps_its_commas() -> None:
    listed = axis('lora.target_modules=[q_proj, v_proj],all-linear,"a,b"')
    assert isinstance(listed, Listed)
    assert [choice[0].partition("=")[2] for choice in listed.choices] == ["[q_proj, v_proj]", "all-linear", '"a,b"']


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("lora.r", "no field with values"),
        ("lora.r=16", "has one value"),
        ("lora.r=16,32,16", "has a value twice"),
        ("lora.r:lora.alpha=16:32,32", "'32' is not 2 values"),
        ("training.learning_rate=1e-3..1e-5", "is no range"),
    ],
)
def test_what_is_no_axis_is_refused(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        axis(text)


def test_a_draw_follows_from_its_seed_and_has_nothing_twice() -> None:
    drawn = draw([RANK, RATE], 4, seed=1)
    assert drawn == draw([RANK, RATE], 4, seed=1) != draw([RANK, RATE], 4, seed=2)
    assert len(set(drawn)) == 4 and set(drawn) < set(grid([RANK, RATE]))
    assert draw([RANK, RATE], 6, seed=1)[:4] == drawn
    assert len(draw([RANK, RATE], 99, seed=1)) == 6


def test_a_range_is_drawn_from_evenly_by_its_logarithm() -> None:
    """Half of all rates from 1e-5 to 1e-3 are below 1e-4."""
    rate = axis("training.learning_rate=1e-5..1e-3")
    drawn = [float(text.partition("=")[2]) for (text,) in draw([rate], 200, seed=3)]
    assert len(set(drawn)) == 200 and min(drawn) >= 1e-5 and max(drawn) <= 1e-3
    assert 80 <= sum(value < 1e-4 for value in drawn) <= 120


def test_a_range_between_whole_numbers_gives_whole_numbers_and_no_more_than_there_are() -> None:
    rank = axis("lora.r=4..8")
    assert isinstance(rank, Between) and rank.whole
    assert {text for (text,) in draw([rank], 50, seed=0)} == {f"lora.r={r}" for r in (4, 5, 6, 7, 8)}


def test_a_grid_has_no_end_of_a_range() -> None:
    with pytest.raises(UsageError, match=r"training\.learning_rate is a range"):
        grid([axis("training.learning_rate=1e-5..1e-3")])


def test_levers_are_the_recipe_as_it_is_and_one_change_at_a_time() -> None:
    changes = [Change(path="lora.r", value=8, why="less room"), Change(path="data.packing", value="off", why="…")]
    assert levers("overfits", changes, alternatives=True).choices == ((), ("lora.r=8",), ("data.packing=off",))
    assert levers("no-room", changes, alternatives=False).choices == ((), ("lora.r=8", "data.packing=off"))


def test_a_run_is_named_by_its_values_and_as_it_is_by_the_recipe() -> None:
    named = [trial.name for trial in trials("deb", [*grid([RANK, RATE])[:1], ()])]
    assert named == ["deb.r-16.learning_rate-1e-4", "deb"]


def test_values_that_cannot_stand_in_a_name_still_make_one_and_no_two_the_same() -> None:
    choices = grid([axis(f"lora.target_modules=[q_proj],[q proj],{'x' * 200}")])
    names = [trial.name for trial in trials("deb", choices)]
    assert len(set(names)) == 3 and all(RUN_NAME.fullmatch(name) for name in names)


def test_an_end_of_what_was_tried_is_named_and_a_middle_or_a_word_is_not() -> None:
    words = axis("data.packing=off,auto")
    assert at_edges([RANK, RATE, words], ("lora.r=64", "training.learning_rate=1e-4", "data.packing=off")) == [
        "lora.r=64 is the largest tried",
        "training.learning_rate=1e-4 is the smallest tried",
    ]
    assert at_edges([RANK], ("lora.r=32",)) == []


def test_a_search_over_nothing_or_of_one_trial_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to search over"):
        Asked(over=()).trials("deb", [], 0)
    with pytest.raises(UsageError, match="one trial is no search"):
        Asked(over=("…",), number=1).trials("deb", [RANK], 0)

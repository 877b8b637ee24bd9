"""The section `review`, and bounds on what people say."""

from pathlib import Path

import pytest

from tests.recipe.recipes import LEAST, loaded, refusal

REVIEW = "review: {rows: 40, rubric: {helpful: 'Could a beginner act on it?'}, required: 30}\n"


def test_a_recipe_says_what_people_are_asked_and_demanded(tmp_path: Path) -> None:
    decision = "decision: {deploy: {review.preferred: '> 0.5', review.helpful: '>= 75 %'}}\n"
    recipe = loaded(tmp_path, LEAST + REVIEW + decision).recipe
    assert (recipe.review.rows, recipe.review.required) == (40, 30)
    assert recipe.review.metrics == ("review.preferred", "review.helpful")
    assert recipe.asks_people and recipe.decision.bounds_people


def test_a_recipe_that_says_nothing_demands_nothing(tmp_path: Path) -> None:
    recipe = loaded(tmp_path).recipe
    assert (recipe.review.rows, recipe.review.required, recipe.asks_people) == (50, 0, False)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("review: {rows: 0}", "review.rows: found 0, expected a whole number > 0"),
        ("review: {rows: 10, required: 20}", "`required` is 20, and only 10 `rows` are drawn"),
        ("review: {rubric: {'very good': x}}", "criterion 'very good': a name is letters, digits, - and _"),
        ("review: {rubric: {preferred: x}}", "criterion 'preferred'"),
        (
            "decision: {deploy: {review.brave: '> 0.5'}}",
            "review.brave, which is none of what `review` asks: review.preferred",
        ),
        ("decision: {deploy: {review.preferred: better than base}}", "what people say is bounded by a number"),
        ("decision: {abort: {review.helpful: '< 0.2'}}", "review.helpful, which is none"),
        ("evaluation: {tasks: [{name: review}]}", "no task can be called 'review'"),
    ],
)
def test_what_cannot_be_asked_or_bounded_is_refused(tmp_path: Path, lines: str, said: str) -> None:
    assert said in refusal(tmp_path, f"{LEAST}{lines}\n")

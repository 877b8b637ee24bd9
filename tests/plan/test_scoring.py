"""How long a task's answers take at each validation, and that the plan's time has it."""

from dataclasses import replace

import pytest

from luthier.plan.scoring import Asked, asked_for_the_best, scoring_seconds
from luthier.plan.setup import Layout
from luthier.plan.shape import known_config, shape_of
from luthier.plan.speed import Range, Rate
from tests.plan.check.cases import case
from tests.plan.test_speed import SETUP

CONFIG = known_config("Qwen/Qwen3-0.6B")
ASKED = Asked(rows=100, prompt_tokens=300, answer_tokens=50, most_tokens=64)
FAST = Rate(flops=Range(low=1e15, mid=1e15, high=1e15), source="a test")
BY_ANSWERS = ("evaluation.tasks=[{name: answers, split: validation, max_new_tokens: 64}]", "checkpoints.best_by=answers.exact")


def seconds(asked: Asked, rate: Rate = FAST, bandwidth: float = 3.35e12) -> Range:
    assert CONFIG
    return scoring_seconds(shape_of(CONFIG), replace(SETUP, dtype="bfloat16"), asked, rate, bandwidth)


def test_a_hundred_answers_of_a_small_model_are_three_batches_whose_layers_are_called_for_each_token() -> None:
    assert seconds(ASKED).mid == pytest.approx(3 * 64 * 0.028, rel=0.12)  # the worked number of `plan/scoring.py`
    assert seconds(ASKED).low == pytest.approx(3 * 50 * 0.028, rel=0.12)
    assert seconds(replace(ASKED, most_tokens=1000, answer_tokens=10)).mid == pytest.approx(10 * 20 * 0.028, rel=0.12)  # ten rows at once


def test_replicas_share_the_rows_and_the_stages_of_a_pipeline_do_not() -> None:
    assert CONFIG
    of = {
        layout: scoring_seconds(shape_of(CONFIG), replace(SETUP, dtype="bfloat16", layout=layout), ASKED, FAST, 3.35e12).mid
        for layout in (Layout(data=3), Layout(data=3, pipeline=2))
    }
    assert of[Layout(data=3)] == pytest.approx(seconds(ASKED).mid / 3, rel=0.05)  # one batch of 34 rows each, for three of 45
    assert of[Layout(data=3, pipeline=2)] == seconds(ASKED).mid


def test_where_memory_is_slow_reading_the_weights_is_what_takes_the_time() -> None:
    one = replace(ASKED, rows=1, prompt_tokens=0)
    assert seconds(one, bandwidth=10e9).mid - seconds(one, bandwidth=0.0).mid == pytest.approx(64 * 1.19e9 / 10e9, rel=0.05)


def test_where_arithmetic_is_slow_prompts_are() -> None:
    slow = Rate(flops=Range(low=1e11, mid=1e11, high=1e11), source="a test")
    prompts = 100 * 300 * 2 * 0.44e9 / 1e11
    assert seconds(ASKED, slow).mid - seconds(replace(ASKED, prompt_tokens=0), slow).mid == pytest.approx(prompts, rel=0.35)


def test_a_plan_whose_best_is_found_by_answers_counts_them_in_its_validations() -> None:
    by_loss = case("checkpoints.eval_steps=10%")
    by_answers = case("checkpoints.eval_steps=10%", *BY_ANSWERS)
    looks = len(by_answers.steps.evaluations)
    asked = asked_for_the_best(by_answers.recipe, by_answers.data, by_answers.survey)
    assert asked == Asked(rows=250, prompt_tokens=200, answer_tokens=200, most_tokens=64)
    each = scoring_seconds(by_answers.shape, by_answers.setup, asked, by_answers.time.rate, by_answers.device.bandwidth)
    assert by_answers.time.validation - by_loss.time.validation == pytest.approx(looks * each.mid)
    for end in ("low", "mid", "high"):
        assert getattr(by_answers.time.total, end) - getattr(by_loss.time.total, end) == pytest.approx(looks * getattr(each, end))


def test_only_so_many_rows_are_asked_as_the_task_says() -> None:
    limited = case("evaluation.tasks=[{name: answers, split: validation, limit: 20}]", "checkpoints.best_by=answers.exact")
    asked = asked_for_the_best(limited.recipe, limited.data, limited.survey)
    assert asked != "nothing" and asked.rows == 20
    assert asked_for_the_best(case().recipe, "stated", case().survey) == "nothing"

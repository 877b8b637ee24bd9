"""How long answers take at each validation and in each step that learns from them, and that the plan's time has it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import luthier.demo
from luthier.plan.asked import Asked, asked_for_the_best, asked_to_learn
from luthier.plan.scoring import scoring_seconds
from luthier.plan.setup import Layout
from luthier.plan.shape import known_config, shape_of
from luthier.plan.speed import Range, Rate, estimate
from tests.plan.check.cases import case
from tests.plan.test_speed import SETUP

CONFIG = known_config("Qwen/Qwen3-0.6B")
ASKED = Asked(rows=100, prompt_tokens=300, shared_tokens=0, answer_tokens=50, most_tokens=64, longest=364)
FAST = Rate(flops=Range(low=1e15, mid=1e15, high=1e15), source="a test")
BY_ANSWERS = ("evaluation.tasks=[{name: answers, split: validation, max_new_tokens: 64}]", "checkpoints.best_by=answers.exact")


def seconds(asked: Asked, rate: Rate = FAST, bandwidth: float = 3.35e12) -> Range:
    assert CONFIG
    return scoring_seconds(shape_of(CONFIG), replace(SETUP, dtype="bfloat16"), asked, rate, bandwidth)


def test_a_hundred_answers_are_written_in_45_slots_that_are_filled_again() -> None:
    assert seconds(ASKED).mid == pytest.approx(
        (100 * 50 / 45 + 14 + 100 * 300 / 512) * 0.028, rel=0.06
    )  # the worked number of `plan/scoring.py`
    assert seconds(ASKED).low == pytest.approx((100 * 50 / 45 + 100 * 300 / 512) * 0.028, rel=0.06)
    few = replace(ASKED, most_tokens=1000, answer_tokens=10)  # twelve at once
    assert seconds(few).mid == pytest.approx((100 * 10 / 12 + 10 + 100 * 300 / 512) * 0.028, rel=0.06)


def test_replicas_share_the_rows_and_the_stages_of_a_pipeline_do_not() -> None:
    assert CONFIG
    of = {
        layout: scoring_seconds(shape_of(CONFIG), replace(SETUP, dtype="bfloat16", layout=layout), ASKED, FAST, 3.35e12).mid
        for layout in (Layout(data=3), Layout(data=3, pipeline=2))
    }
    assert of[Layout(data=3)] == seconds(replace(ASKED, rows=34)).mid < 0.6 * seconds(ASKED).mid
    assert of[Layout(data=3, pipeline=2)] == seconds(ASKED).mid


def test_what_prompts_share_is_read_once() -> None:
    slow = Rate(flops=Range(low=1e11, mid=1e11, high=1e11), source="a test")
    shared = replace(ASKED, shared_tokens=250)
    assert seconds(ASKED, slow).mid - seconds(shared, slow).mid == pytest.approx(99 * 250 * 2 * 0.44e9 / 1e11, rel=0.05)


# 2026-11-29, two shared cores, one thread, float32, LoRA r 16 on all layers; processor seconds of the engine (docs/notes/evaluate.md)
@pytest.mark.parametrize(
    ("rows", "prompt", "shared", "answer", "longest", "measured"),
    [(128, 444, 405, 11.2, 64, 1.23), (64, 78, 40, 7.4, 64, 0.44), (16, 443, 405, 10.6, 45, 0.28)],
)
def test_points_that_were_measured_lie_in_the_range(
    rows: int, prompt: int, shared: int, answer: float, longest: int, measured: float
) -> None:
    demo = shape_of(json.loads((Path(luthier.demo.__file__).parent / "base" / "config.json").read_text()))
    asked = Asked(
        rows=rows, prompt_tokens=prompt, shared_tokens=shared, answer_tokens=answer, most_tokens=longest, longest=prompt + longest
    )
    rate = Rate(flops=Range(low=5e10, mid=5e10, high=5e10), source="a core's, by the point whose answers are all alike")
    found = scoring_seconds(demo, SETUP, asked, rate, 0.0)
    assert found.low < found.mid < measured < found.high  # the longest answer was 4 to 9 times the mean, not twice


def test_where_memory_is_slow_reading_the_weights_is_what_takes_the_time() -> None:
    one = replace(ASKED, rows=1, prompt_tokens=0)
    assert seconds(one, bandwidth=10e9).mid - seconds(one, bandwidth=0.0).mid == pytest.approx(64 * 1.19e9 / 10e9, rel=0.05)


def test_where_arithmetic_is_slow_prompts_are() -> None:
    slow = Rate(flops=Range(low=1e11, mid=1e11, high=1e11), source="a test")
    prompts = 100 * 300 * 2 * 0.44e9 / 1e11
    assert seconds(ASKED, slow).mid - seconds(replace(ASKED, prompt_tokens=0), slow).mid == pytest.approx(prompts, rel=0.05)


def test_a_plan_whose_best_is_found_by_answers_counts_them_in_its_validations() -> None:
    by_loss = case("checkpoints.eval_steps=10%")
    by_answers = case("checkpoints.eval_steps=10%", *BY_ANSWERS)
    looks = len(by_answers.steps.evaluations)
    asked = asked_for_the_best(by_answers.recipe, by_answers.data, by_answers.survey)
    assert asked == Asked(rows=250, prompt_tokens=200, shared_tokens=0, answer_tokens=200, most_tokens=64, longest=864)
    each = scoring_seconds(by_answers.shape, by_answers.setup, asked, by_answers.time.rate, by_answers.device.bandwidth)
    assert by_answers.time.validation - by_loss.time.validation == pytest.approx(looks * each.mid)
    for end in ("low", "mid", "high"):
        assert getattr(by_answers.time.total, end) - getattr(by_loss.time.total, end) == pytest.approx(looks * getattr(each, end))


def test_only_so_many_rows_are_asked_as_the_task_says() -> None:
    limited = case("evaluation.tasks=[{name: answers, split: validation, limit: 20}]", "checkpoints.best_by=answers.exact")
    asked = asked_for_the_best(limited.recipe, limited.data, limited.survey)
    assert asked != "nothing" and asked.rows == 20
    assert asked_for_the_best(case().recipe, "stated", case().survey) == "nothing"


def test_a_step_that_learns_from_answers_takes_as_long_as_they_take_to_be_drawn_too() -> None:
    for updates in (1, 2):
        rl = f"rl={{rewards: {{exact: 1.0}}, group_size: 8, max_new_tokens: 100, updates: {updates}}}"
        found = case("training.global_batch_size=64", "checkpoints.eval_steps=10%", rl)
        asked = asked_to_learn(found.recipe, found.data, found.survey)
        drawn = {"answer_tokens": 100, "most_tokens": 100, "longest": 900, "drawn": True}
        assert asked == Asked(rows=64, prompt_tokens=400, shared_tokens=400 * 7 / 8, **drawn)
        each = scoring_seconds(found.shape, found.setup, asked, found.time.rate, found.device.bandwidth)
        learning = estimate(found.shape, found.setup, found.survey, found.steps, found.time.rate)
        assert found.time.step - learning.step == pytest.approx(each.mid / updates)
    assert asked_to_learn(case().recipe, case().data, case().survey) == "nothing"

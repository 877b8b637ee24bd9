"""The forecast after some steps: tokens times their pace, with the validations and saves that are due."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from luthier.data.order import rows_of_step
from luthier.plan.speed import Range, Rate, Time
from luthier.plan.steps import Steps
from luthier.runs.rates import Circumstances
from luthier.train.forecast import Schedule, Timing, forecast, run_rate, schedule_of, step_tokens
from tests.train.workshop import ragged_rows, stored

TOKENS = [1000, 3000, 2000, 1000, 1000, 2000, 3000, 1000, 2000, 1000, *[1500] * 90]
SCHEDULE = Schedule(
    tokens=TOKENS,
    evaluations=(50, 100),
    saves=(25, 50, 75, 100),
    planned=Range(low=59.0, mid=118.0, high=236.0),
    step_seconds=1.0,
    validation_seconds=8.0,
    save_seconds=0.5,
)
HERE = Circumstances(
    processor="EPYC", threads=2, dtype="bfloat16", quantization="none", engine="fused", trained="adapter", hidden=64, places=1000.0
)
PACE = 1e-3
"""Seconds a token."""


def steps_taken(last: int, pace: float = PACE) -> list[Timing]:
    return [Timing(kind="step", step=step, seconds=pace * TOKENS[step - 1]) for step in range(1, last + 1)]


def test_the_total_is_every_steps_tokens_at_the_measured_pace_and_what_comes_between() -> None:
    found = forecast(SCHEDULE, steps_taken(10))
    mean = PACE * sum(TOKENS) / 100
    validations = 2 * 8.0 * mean / SCHEDULE.step_seconds  # steps take 1.52 × as long as planned, and so will validations
    assert found.total.mid == pytest.approx(PACE * sum(TOKENS) + validations + 4 * 0.5)
    assert found.left.mid == pytest.approx(found.total.mid - PACE * sum(TOKENS[:10]))
    assert found.step == pytest.approx(mean)


def test_the_first_step_does_not_count() -> None:
    slow_start = [replace(steps_taken(1)[0], seconds=60.0), *steps_taken(10)[1:]]
    assert forecast(SCHEDULE, slow_start) == forecast(SCHEDULE, steps_taken(10))


def test_one_disturbed_step_does_not_count() -> None:
    taken = steps_taken(10)
    disturbed = [*taken[:5], replace(taken[5], seconds=50.0), *taken[6:]]
    assert forecast(SCHEDULE, disturbed).total.mid == pytest.approx(forecast(SCHEDULE, taken).total.mid)
    assert forecast(SCHEDULE, disturbed).total.high > 1.5 * forecast(SCHEDULE, taken).total.high  # but it is doubted


def test_a_validation_and_a_save_that_were_measured_replace_the_plans() -> None:
    taken = steps_taken(50)
    between = [Timing(kind="save", step=25, seconds=2.0), Timing(kind="validation", step=50, seconds=3.0)]
    found = forecast(SCHEDULE, [*taken, *between, Timing(kind="save", step=50, seconds=2.0)])
    assert found.total.mid == pytest.approx(PACE * sum(TOKENS) + 2 * 3.0 + 4 * 2.0)
    assert found.left.mid == pytest.approx(PACE * sum(TOKENS[50:]) + 3.0 + 2 * 2.0)


def test_a_resumed_run_is_forecast_by_what_it_does_now() -> None:
    now = [timing for timing in steps_taken(40, pace=2 * PACE) if timing.step > 30]
    found = forecast(SCHEDULE, now)
    assert found.left.mid == pytest.approx(2 * PACE * sum(TOKENS[40:]) + 2 * 8.0 * found.step + 3 * 0.5)


def test_a_resumed_run_is_held_against_the_plan_of_what_it_still_had_to_do() -> None:
    now = [timing for timing in steps_taken(70) if timing.step > 60]
    found = forecast(SCHEDULE, now)
    tokens, rest = sum(TOKENS), sum(TOKENS[60:])
    assert found.after == 60
    assert found.total.mid == pytest.approx(PACE * rest + 8.0 * found.step + 2 * 0.5)  # one validation and two saves come after step 60
    planned = 100.0 * rest / tokens + 8.0 + 2 * 0.5
    assert found.planned.mid == pytest.approx(planned)
    assert (found.planned.low, found.planned.high) == pytest.approx((planned / 2, planned * 2))


def test_a_run_from_its_first_step_is_held_against_the_whole_plan() -> None:
    found = forecast(SCHEDULE, steps_taken(10))
    assert (found.after, found.planned) == (0, SCHEDULE.planned)


def test_a_runs_rate_is_that_of_all_steps_but_the_first() -> None:
    slow_start = [replace(steps_taken(1)[0], seconds=60.0), *steps_taken(20)[1:]]
    found = run_rate("mine", HERE, 2e9, SCHEDULE, slow_start)
    assert found is not None
    assert (found.source, found.name, found.circumstances) == ("run", "mine", HERE)
    assert found.flops == pytest.approx(2e9 / PACE)


def test_a_run_of_19_steps_is_too_short_to_have_a_rate() -> None:
    assert run_rate("mine", HERE, 2e9, SCHEDULE, steps_taken(19)) is None


def test_a_steps_tokens_are_those_of_the_rows_it_takes(tmp_path: Path) -> None:
    rows = stored(ragged_rows(), tmp_path)
    steps = Steps(rows=8, global_batch_size=3, per_epoch=3, total=7, warmup=0, saves=(7,), evaluations=())
    expected = [int(rows.lengths[rows_of_step(step, 3, 5, rows)].sum()) for step in range(1, 8)]
    assert step_tokens(rows, steps, seed=5).tolist() == expected


def test_a_schedule_divides_the_plans_seconds_by_how_often(tmp_path: Path) -> None:
    steps = Steps(rows=8, global_batch_size=4, per_epoch=2, total=4, warmup=0, saves=(2, 4), evaluations=(4,))
    rate = Rate(flops=Range(low=1, mid=1, high=1), source="a test")
    planned = Time(total=Range(low=1, mid=1, high=1), step=2.0, validation=3.0, saves=5.0, operations_per_step=1.0, rate=rate)
    found = schedule_of(stored(ragged_rows(), tmp_path), steps, 5, planned)
    assert (found.step_seconds, found.validation_seconds, found.save_seconds) == (2.0, 3.0, 2.5)
    assert np.sum(found.tokens) == 2 * sum(map(len, ragged_rows()))

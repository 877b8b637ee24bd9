"""The users' own arithmetic of steps, done right."""

import pytest

from luthier.plan.steps import Steps, count_steps
from luthier.recipe.schema import Checkpoints, Training


def steps(rows: int, *, validation_rows: int = 1, checkpoints: Checkpoints | None = None, **training: object) -> Steps:
    return count_steps(rows, validation_rows, Training.model_validate(training), checkpoints or Checkpoints())


def test_seed_004_has_45_steps_not_240() -> None:
    plan = steps(238, epochs=3, global_batch_size=2 * 8, warmup_steps=50, checkpoints=Checkpoints(save_steps=50))
    assert (plan.per_epoch, plan.total) == (15, 45)
    assert plan.saves == (45,)  # every 50 steps of 45: only the last


def test_seed_000_has_879_steps() -> None:
    plan = steps(23_439, epochs=3, global_batch_size=5 * 2 * 8, warmup_ratio=0.03, checkpoints=Checkpoints(save_steps=50))
    assert (plan.per_epoch, plan.total, plan.warmup) == (293, 879, 27)
    assert plan.saves[:2] == (50, 100) and plan.saves[-2:] == (850, 879)


def test_seed_002_has_1686_steps_and_validates_every_200() -> None:
    plan = steps(13_482, epochs=2, global_batch_size=8 * 2, warmup_steps=200, checkpoints=Checkpoints(eval_steps=200, save_steps=200))
    assert (plan.per_epoch, plan.total, plan.warmup) == (843, 1_686, 200)
    assert plan.evaluations == (200, 400, 600, 800, 1000, 1200, 1400, 1600, 1686)


def test_max_steps_overrules_epochs_and_a_share_is_of_all_steps() -> None:
    plan = steps(100, max_steps=40, checkpoints=Checkpoints.model_validate({"eval_steps": "10%"}))
    assert plan.total == 40
    assert plan.evaluations == tuple(range(4, 41, 4))


def test_by_default_a_run_validates_and_saves_ten_times() -> None:
    plan = steps(1600, epochs=3, global_batch_size=16)
    assert plan.saves == plan.evaluations == tuple(range(30, 301, 30))


@pytest.mark.parametrize(("epochs", "validation_rows", "looks"), [(1, 200, 4), (2, 200, 7), (3, 200, 10), (1, 20, 10), (1, 3200, 1)])
def test_validations_are_ten_or_as_many_as_a_fifth_of_the_run_affords(epochs: int, validation_rows: int, looks: int) -> None:
    """A validation row costs half a training row: 4 × 200 / 2 rows beside 1,600 are 20 %."""
    plan = steps(1600, validation_rows=validation_rows, epochs=epochs, global_batch_size=16)
    assert abs(len(plan.evaluations) - looks) <= 1  # steps are whole
    assert len(plan.evaluations) * validation_rows / 2 <= 0.25 * epochs * 1600 or len(plan.evaluations) == 1


def test_the_last_save_before_the_end_is_what_a_kill_leaves() -> None:
    assert steps(1600, epochs=3, global_batch_size=16).last_save_before_end == 270
    assert steps(100, epochs=1, global_batch_size=16, checkpoints=Checkpoints(save_steps=50)).last_save_before_end == 0


def test_half_an_epoch_rounds_up_to_whole_steps() -> None:
    assert steps(100, epochs=0.5, global_batch_size=16).total == 4  # half of 7
    assert steps(100, epochs=1.1, global_batch_size=10).total == 11  # 10 × 1.1 is 11.000000000000002


def test_without_validation_rows_nothing_is_validated() -> None:
    assert steps(100, validation_rows=0).evaluations == ()


@pytest.mark.parametrize("rows", [1, 15, 16, 17])
def test_saves_fall_at_the_end_of_each_epoch(rows: int) -> None:
    plan = steps(rows, epochs=3, global_batch_size=16, checkpoints=Checkpoints(save_steps="epoch"))
    assert plan.saves == (plan.per_epoch, 2 * plan.per_epoch, 3 * plan.per_epoch)
    assert plan.epoch_at(plan.total) == 3

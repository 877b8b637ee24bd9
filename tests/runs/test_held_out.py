"""What answers to validation rows were worth, by the events of a run that may have gone on from a checkpoint."""

from pathlib import Path

from luthier.core import jsonl
from luthier.runs.held_out import held_out as rewards_of
from luthier.runs.status import status
from tests.runs.recorded import held_out, line, recorded, rewarded, run_in


def test_rewards_of_validation_rows_stand_by_step_with_their_intervals(tmp_path: Path) -> None:
    run = run_in(tmp_path / "animals")
    held_out(run, 10, 0.6)
    run.event("held_out", step=15, value=None, low=None, high=None, n=0)
    held_out(run, 20, 0.75)
    found = rewards_of(list(jsonl.records(run.events)))
    assert [(each.step, each.value, each.n) for each in found] == [(10, 0.6, 170), (20, 0.75, 170)]
    assert (found[1].low, found[1].high) == (0.7, 0.8)


def test_what_was_measured_after_the_checkpoint_that_a_run_went_on_from_is_measured_again(tmp_path: Path) -> None:
    run = run_in(tmp_path / "animals")
    for step, value in ((10, 0.6), (20, 0.9)):
        held_out(run, step, value)
    run.event("resumed", step=10)
    assert [each.step for each in rewards_of(list(jsonl.records(run.events)))] == [10]
    held_out(run, 20, 0.7)
    assert [each.value for each in rewards_of(list(jsonl.records(run.events)))] == [0.6, 0.7]


def test_a_status_has_the_reward_of_twenty_steps_and_the_newest_of_held_out_rows(tmp_path: Path) -> None:
    run = run_in(tmp_path / "animals")
    recorded(run, [*(rewarded(step, 0.0 if step <= 20 else 0.5) for step in range(1, 40)), rewarded(40, None), line(40, 1.2, "validation")])
    held_out(run, 20, 0.4)
    held_out(run, 40, 0.625)
    found = status(run).to_json()
    assert (found["reward"], found["held_out_reward"], found["held_out_interval"]) == (0.5, 0.625, (0.575, 0.675))
    assert (found["train_loss"], found["validation_loss"], found["gap"]) == (0.01, 1.2, None)


def test_a_status_of_a_supervised_run_has_no_reward(tmp_path: Path) -> None:
    run = run_in(tmp_path / "animals")
    recorded(run, [line(1, 2.0)])
    found = status(run)
    assert (found.reward, found.held_out_reward, found.held_out_interval) == (None, None, None)

"""What a run tells of its time after ten steps, beside what was planned for the same."""

from pathlib import Path

import pytest

from luthier.core import jsonl
from luthier.core.progress import Silent
from luthier.plan.speed import Range, Rate, Time
from luthier.runs.store import RunFolder
from luthier.train.clock import Clock
from tests.train.test_forecast import HERE, PACE, SCHEDULE, TOKENS

PLANNED = Time(
    total=SCHEDULE.planned,
    step=1.0,
    validation=16.0,
    saves=2.0,
    operations_per_step=1e9,
    rate=Rate(flops=Range(low=1.0, mid=1.0, high=1.0), source="a test"),
)


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def told_after_ten_steps(folder: Path, first: int) -> tuple[str, dict[str, object]]:
    """What is said, and the event, of a process whose first step is this one."""
    heard, run = Heard(), RunFolder(folder)
    clock = Clock(schedule=SCHEDULE, planned=PLANNED, here=HERE, folder=run, progress=heard)
    for step in range(first, first + 10):
        clock.note("step", step, PACE * TOKENS[step - 1])
    (line,), (event,) = heard.said, jsonl.records(run.events)
    return line, event


def test_a_run_is_told_from_its_first_step_to_its_last(tmp_path: Path) -> None:
    line, _ = told_after_ten_steps(tmp_path, first=1)
    assert line.startswith("after 10 steps: 3 min in all, 3 min left; planned for the same were 118 s (59 s … 4 min)")


def test_a_run_that_goes_on_is_told_from_where_it_does_and_so_is_its_plan(tmp_path: Path) -> None:
    line, event = told_after_ten_steps(tmp_path, first=61)
    assert line.startswith("after 10 steps: 73.2 s in all from step 61 on, 58.2 s left; planned for the same were 48.5 s")
    assert event["after"] == 60
    assert event["planned"] == pytest.approx({"low": 24.24, "mid": 48.47, "high": 96.95}, abs=0.01)

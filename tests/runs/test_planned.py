"""plan.json as who plans nothing reads it: one model for status, rules and report."""

import json
from pathlib import Path

import pytest

from luthier.runs.planned import Planned
from tests.runs.recorded import planned, run_in


def test_what_a_plan_says_is_read_and_what_a_later_version_says_more_is_passed_over(tmp_path: Path) -> None:
    run = run_in(tmp_path / "animals")
    assert Planned.of(run) == "unknown"
    planned(run, 9, saves=[3, 9])
    run.plan.write_text(json.dumps({**json.loads(run.plan.read_text()), "later": 1}))
    found = Planned.of(run)
    assert found != "unknown" and not found.on_gpu
    assert (found.steps.total, found.steps.saves, found.time.slack, found.time.rate.measured) == (9, (3, 9), 1.1, True)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff", '{"steps": {"total": 9}}', '{"device": {"id": "cpu"}, "steps": null}'])
def test_of_a_plan_that_is_damaged_or_of_another_version_nothing_is_known(tmp_path: Path, text: str) -> None:
    run = run_in(tmp_path / "animals")
    run.plan.write_text(text, errors="surrogateescape")
    assert Planned.of(run) == "unknown"


@pytest.mark.parametrize("step", ["0", "-1.0", "NaN", "Infinity", "1e400"])
def test_a_plan_whose_steps_take_no_time_or_for_ever_is_damaged(tmp_path: Path, step: str) -> None:
    run = run_in(tmp_path / "animals")
    planned(run, 9)
    run.plan.write_text(run.plan.read_text().replace('"step": 2.0', f'"step": {step}'))
    assert Planned.of(run) == "unknown"

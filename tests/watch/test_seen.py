"""A run that is looked at again and again: what is read twice, and how often rules are asked."""

import time
from itertools import pairwise
from pathlib import Path

import pytest

from luthier.core.finding import Finding
from luthier.runs.status import status
from luthier.runs.store import RunFolder, alone
from luthier.watch.rules import found_in
from luthier.watch.rules.case import Case
from luthier.watch.seen import Seen
from tests.runs.recorded import beat, line, planned, recorded, run_in


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = run_in(tmp_path / "animals")
    planned(run, 100)
    recorded(run, [line(step, 3.0 - step / 20) for step in range(1, 41)])
    return run


class Slow:
    """All rules, which take 0.05 s longer than they do, and when they were asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, case: Case) -> tuple[Finding, ...]:
        self.asked.append(time.monotonic())
        time.sleep(0.05)
        return found_in(case)


def test_rules_are_asked_again_only_where_a_file_has_changed(run: RunFolder) -> None:
    seen = Seen(run=run, rules=(slow := Slow()))
    assert seen.diagnosed(status(run)).alarms == () and len(slow.asked) == 1
    assert seen.diagnosed(status(run)).diagnosed and len(slow.asked) == 1
    run.metrics.rename(run.metrics.with_suffix(".old"))  # a run that goes on puts another file there
    recorded(run, [line(step, 3.0 - step / 20, grad_norm=50.0) for step in range(1, 41)])
    assert seen.diagnosed(status(run)).alarms == ("gradient-large",) and len(slow.asked) == 2
    scores = run.path / "evaluations" / "tuned" / "scores.json"
    scores.parent.mkdir(parents=True)
    scores.write_text('{"tasks": {"answers": {"metric": "exact", "value": 1.0, "low": 0.8, "n": 20}}}')
    assert "perfect-on-few" in {each.code for each in seen.diagnosed(status(run)).findings}


def test_of_a_run_that_goes_on_rules_are_asked_a_tenth_of_the_time(run: RunFolder) -> None:
    seen, end = Seen(run=run, rules=(slow := Slow())), time.monotonic() + 1.5
    with alone(run):
        beat(run)
        while time.monotonic() < end:
            run.metric(line(41, 1.0))
            seen.diagnosed(status(run))
            time.sleep(0.02)
        assert 2 <= len(slow.asked) <= 4
        assert min(later - earlier for earlier, later in pairwise(slow.asked)) >= 0.5
        run.event("interrupted", step=41, signal="SIGTERM")
    num = len(slow.asked)
    assert seen.diagnosed(status(run)).diagnosed and len(slow.asked) == num + 1  # it has ended: this is the last look


def test_a_damaged_recipe_leaves_what_was_told(run: RunFolder) -> None:
    run.event("finding", code="save-failed", severity="warn", message="no room")
    run.recipe.write_text("name: [")
    found = Seen(run=run).diagnosed(status(run))
    assert (found.alarms, found.diagnosed) == (("save-failed",), False)

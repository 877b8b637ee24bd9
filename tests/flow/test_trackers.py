"""A real run beside a tracker that fails: it comes to its end, and says what the tracker was not told."""

from pathlib import Path

import pytest

from luthier import flow
from luthier.core import jsonl
from luthier.core.errors import PlanRefused
from luthier.demo import RECIPE
from luthier.runs.status import status
from tests.watch.test_trackers import stand_in

OVERRIDES = ("training.max_steps=3", "checkpoints.best_by=loss", "tracking.report_to=[trackio]")


@pytest.fixture(autouse=True)
def _runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))


def test_a_run_is_finished_whatever_its_tracker_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "raise OSError('no route')")
    monkeypatch.syspath_prepend(str(tmp_path / "library"))
    run = flow.train(flow.load(RECIPE, OVERRIDES)).run
    (found,) = [each for each in status(run).findings if each.code == "tracker-behind"]
    assert (status(run).state, found.message.partition(": ")[2]) == ("finished", "OSError: no route")
    assert found.evidence["told"] == 1
    again = flow.train(flow.load(RECIPE, OVERRIDES[:2])).run  # who looks on is no part of what a run is
    assert again == run
    assert sum(event["event"] == "started" for event in jsonl.records(run.events)) == 1


def test_a_library_that_is_not_there_is_told_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.watch.trackers.find_spec", lambda name: None)
    with pytest.raises(PlanRefused, match=r"tracking\.report_to wants trackio"):
        flow.train(flow.load(RECIPE, OVERRIDES))
    assert not (tmp_path / "runs").exists()

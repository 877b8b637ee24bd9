"""Trackers: each is told every line once, by its own library; one that raises or hangs costs the run nothing but a bounded wait."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.core import jsonl
from luthier.core.errors import PlanRefused
from luthier.recipe.tracking import Tracker, Tracking
from luthier.runs.store import RunFolder
from luthier.watch.trackers import Told, refuse_absent, told_file, tracked
from tests.runs.recorded import line, rewarded, run_in

RECIPE = "name: animals\nmodel: {base: demo}\ndata: {sources: [{path: rows.jsonl}]}\ntracking: {report_to: [tensorboard], project: zoo}\n"
LINES = [line(1, 3.0), line(2, 2.0), line(2, 2.5, "validation"), line(3, None)]

STAND_IN = """
import time
def init(**settings): pass
def log(numbers, step):
    if step == 2: {act}
def finish(): pass
"""
"""A library in the place of trackio, which does something else in step 2."""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = run_in(tmp_path / "animals")
    run.recipe.write_text(RECIPE)
    return run


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "trackio.py").write_text(STAND_IN.format(act=act))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "library"), os.environ.get("PYTHONPATH", "")]))


def recorded_while_tracked(
    run: RunFolder, name: Tracker, lines: list[dict[str, Any]] = LINES, seconds: float = 60
) -> tuple[list[str], float]:
    """What was said, and how long the run's end took."""
    said: list[str] = []
    with tracked(run, Tracking(report_to=(name,)), said.append, seconds_to_end=seconds):
        for each in lines:
            run.metric(each)
        began = time.monotonic()
    return said, time.monotonic() - began


def findings(run: RunFolder) -> list[dict[str, Any]]:
    return [record for record in jsonl.records(run.events) if record["event"] == "finding"]


def test_a_tracker_is_told_every_line_once_and_no_number_that_is_none(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "pass")
    path = tmp_path / "library" / "trackio.py"
    path.write_text(
        path.read_text() + f"\ndef log(numbers, step): print(step, sorted(numbers), file=open({str(tmp_path / 'told')!r}, 'a'))\n"
    )
    assert recorded_while_tracked(run, "trackio")[0] == []
    told = (tmp_path / "told").read_text().splitlines()
    assert [each.partition(" ")[0] for each in told] == ["1", "2", "2", "3"]
    assert "train/loss" in told[0] and "validation/loss" in told[2] and "train/loss" not in told[3]
    assert recorded_while_tracked(run, "trackio", [line(4, 1.0)])[0] == []  # gone on with: the earlier ones are not told again
    assert [each.partition(" ")[0] for each in (tmp_path / "told").read_text().splitlines()] == ["1", "2", "2", "3", "4"]
    assert Told.read(told_file(run, "trackio")).lines == 5


def test_steps_that_a_resumed_run_computes_again_are_told_once(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "pass")
    recorded_while_tracked(run, "trackio")
    run.metrics.unlink()
    assert recorded_while_tracked(run, "trackio", [*LINES[:3], line(3, 1.5), line(4, 1.0)])[0] == []
    assert Told.read(told_file(run, "trackio")).lines == 5


def test_a_tracker_that_raises_is_told_with_what_it_was_not_told(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "raise OSError('no route to the server')")
    said, _ = recorded_while_tracked(run, "trackio")
    found = findings(run)[-1]
    assert found["message"] == "trackio was not told 3 of the run's lines: OSError: no route to the server"
    assert (found["code"], found["evidence"]) == ("tracker-behind", {"tracker": "trackio", "lines": 3, "told": 1})
    assert said[-1] == f"warn: {found['message']} [tracker-behind]"
    assert "no route to the server" in run.log.read_text()


def test_a_tracker_that_ends_is_told_while_the_run_goes_on(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "raise OSError('no route to the server')")
    said: list[str] = []
    with tracked(run, Tracking(report_to=("trackio",)), said.append):
        for each in LINES:
            run.metric(each)
        end = time.monotonic() + 60
        while not said and time.monotonic() < end:
            time.sleep(0.05)
        (found,) = findings(run)
        assert found["message"] == "trackio is told nothing more after 1 line: OSError: no route to the server; the run goes on"
        assert said == [f"warn: {found['message']} [tracker-ended]"]
    assert [each["code"] for each in findings(run)] == ["tracker-ended", "tracker-behind"]


def test_a_tracker_leaves_the_processor_to_who_trains(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, f"import os; print(os.nice(0), file=open({str(tmp_path / 'nice')!r}, 'w'))")
    assert recorded_while_tracked(run, "trackio")[0] == []
    assert int((tmp_path / "nice").read_text()) == min(19, os.nice(0) + 10)


def test_a_tracker_that_hangs_holds_the_end_up_for_no_longer_than_the_bound(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "time.sleep(600)")
    said, seconds = recorded_while_tracked(run, "trackio", seconds=3)
    assert 2.5 < seconds < 6
    assert said[0].startswith("warn: trackio was not told ")
    assert said[0].endswith("of the run's lines: it did not answer within 3 s of the run's end [tracker-behind]")


def test_what_ends_the_run_is_not_hidden_by_its_tracker(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "raise OSError('gone')")
    with pytest.raises(ZeroDivisionError), tracked(run, Tracking(report_to=("trackio",)), lambda said: None):
        for each in LINES:
            run.metric(each)
        raise ZeroDivisionError
    assert findings(run)[-1]["code"] == "tracker-behind"


def test_a_library_that_is_not_installed_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.watch.trackers.find_spec", lambda name: None)
    with pytest.raises(PlanRefused, match=r"tracking.report_to wants wandb and mlflow, which are not installed(?s:.*)luthier\[track\]"):
        refuse_absent(Tracking(report_to=("wandb", "mlflow")))
    refuse_absent(Tracking())


def test_tensorboard_reads_back_what_it_was_told(run: RunFolder) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert recorded_while_tracked(run, "tensorboard")[0] == []
    events = EventAccumulator(str(run.path / "trackers" / "tensorboard"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("train/loss")] == [(1, 3.0), (2, 2.0)]
    assert [(each.step, each.value) for each in events.Scalars("validation/loss")] == [(2, 2.5)]


def test_what_rewarded_answers_tell_is_told_to_a_tracker_too(run: RunFolder) -> None:
    pytest.importorskip("tensorboard")
    assert recorded_while_tracked(run, "tensorboard", [rewarded(1, 0.5, **{"reward/exact": 0.25})])[0] == []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "trackers" / "tensorboard"))
    found.Reload()
    assert {"train/reward", "train/reward/exact", "train/entropy"} <= set(found.Tags()["scalars"])
    assert "train/kl" not in found.Tags()["scalars"]


def test_mlflow_reads_back_what_it_was_told(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert recorded_while_tracked(run, "mlflow")[0] == []
    client = mlflow.MlflowClient()
    history = client.get_metric_history(Told.read(told_file(run, "mlflow")).id, "train/loss")
    assert [(each.step, each.value) for each in history] == [(1, 3.0), (2, 2.0)]
    assert client.get_experiment_by_name("zoo") is not None


def test_wandb_keeps_what_it_was_told_offline(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert recorded_while_tracked(run, "wandb")[0] == []
    (kept,) = (run.path / "trackers").rglob("*.wandb")
    assert b"train/loss" in kept.read_bytes()


def test_trackio_reads_back_what_it_was_told(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert recorded_while_tracked(run, "trackio")[0] == []
    (kept,) = (tmp_path / "trackio").glob("*zoo*.db")
    with sqlite3.connect(kept) as database:
        told = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in told] == [1, 2, 2, 3]
    assert "train/loss" in str(told[0][1])

"""Where a run stands, by its folder alone: running, ended in whatever way, on another machine, damaged."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.core.errors import NonFiniteError
from luthier.core.signals import Interrupted
from luthier.runs.heartbeat import Heartbeat, LastWords
from luthier.runs.status import status
from luthier.runs.store import RunFolder, alone
from tests.runs.recorded import beat, line, planned, recorded, run_in

HOLD = """
import sys
from pathlib import Path
from luthier.runs.heartbeat import Heartbeat
from luthier.runs.store import RunFolder, alone
run = RunFolder(Path(sys.argv[1]))
with alone(run), Heartbeat(run, 0) as heart:
    heart.beat("computing", 7)
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return run_in(tmp_path / "animals")


def test_a_run_that_nobody_trained_is_new_and_one_that_was_given_to_a_host_is_queued(run: RunFolder) -> None:
    assert status(run).state == "new"
    run.event("launched", on="slurm", id="7", host="login")
    assert (status(run).state, status(run).phase) == ("queued", "none")


def test_a_run_is_running_while_a_process_has_it_and_says_what_rank_0_does(run: RunFolder) -> None:
    with alone(run):
        assert (status(run).state, status(run).phase) == ("running", "preparing")
        with Heartbeat(run, 0) as heart:
            heart.beat("validating", 12)
            found = status(run)
    assert (found.state, found.phase, found.host) == ("running", "validating", found.ranks[0].host)
    assert (found.ranks[0].step, found.ranks[0].ended) == (12, False)


def test_a_killed_process_is_known_and_so_is_another_that_got_its_number(run: RunFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holds\n"
        assert (status(run).state, status(run).phase) == ("running", "computing")
        held = json.loads(run.lock.read_text())
        run.lock.write_text(json.dumps({**held, "started": held["started"] - 100}))
        assert status(run).state == "killed"
        run.lock.write_text(json.dumps(held))
        assert status(run).state == "running"
        holder.kill()
    found = status(run)
    assert (found.state, found.phase) == ("killed", "none")
    assert found.why == f"process {holder.pid} is gone without a word: killed, or the machine was switched off"


def test_a_run_that_was_stopped_says_by_what(run: RunFolder) -> None:
    with pytest.raises(Interrupted), alone(run), Heartbeat(run, 0) as heart:
        heart.beat("computing", 7)
        run.event("started", steps=9)
        run.event("interrupted", step=7, signal="SIGTERM")
        raise Interrupted(15)
    assert (status(run).state, status(run).why) == ("stopped", "by SIGTERM")
    run.event("launched", on="slurm", id="7", host="login")
    assert status(run).state == "queued"


def test_a_signal_before_the_first_step_stops_it_too(run: RunFolder) -> None:
    with pytest.raises(Interrupted), alone(run), Heartbeat(run, 0):
        raise Interrupted(15)
    assert (status(run).state, status(run).why) == ("stopped", "before its first step")


def test_a_failure_is_told_in_its_own_words(run: RunFolder) -> None:
    with pytest.raises(NonFiniteError), alone(run), Heartbeat(run, 0) as heart:
        heart.beat("computing", 7)
        raise NonFiniteError("loss nan", where="step 7", change="lower training.learning_rate")
    assert (status(run).state, status(run).why) == ("failed", "step 7: loss nan")


def test_what_the_supervisor_found_goes_before_what_a_rank_says_of_its_lost_peer(run: RunFolder) -> None:
    run.event("started", steps=9)
    beat(run, 0, ended=LastWords(code=1, kind="RuntimeError", what="connection closed by peer"))
    run.event("dead", rank=1, phase="computing", step=7, how="gone without a word")
    assert (status(run).state, status(run).why) == ("failed", "rank 1 ended in step 7: gone without a word")
    run.event("restarted", number=1, why="…")
    with alone(run):
        assert (status(run).state, status(run).restarts) == ("running", 1)


def test_a_finished_run_has_nothing_left(run: RunFolder) -> None:
    planned(run, 9)
    recorded(run, [line(step, 1.0) for step in range(1, 10)])
    run.adapter.mkdir()
    run.event("finished", step=9)
    found = status(run)
    assert (found.state, found.step, found.total, found.seconds_left, found.phase) == ("finished", 9, 9, None, "none")


def test_a_run_of_another_machine_lives_by_the_age_of_its_beats(run: RunFolder) -> None:
    beat(run, host="another", pid=1)
    assert (status(run).state, status(run).host, status(run).phase) == ("running", "another", "computing")
    beat(run, host="another", pid=1, time=time.time() - 300)
    found = status(run)
    assert (found.state, found.why) == ("silent", "the last sign of life, step 7, computing, is 300 s old")
    beat(run, host="another", pid=1, time=time.time() - 300, usual_seconds=40.0)  # ten such steps are its supervisor's patience
    assert status(run).state == "running"
    beat(run, host="another", pid=1, time=time.time() - 300, ended=LastWords(code=1, what="no room"))
    assert (status(run).state, status(run).why) == ("failed", "no room")


def test_a_run_that_another_machine_has_taken_is_loading_before_its_first_beat(run: RunFolder) -> None:
    since = "2026-01-01T00:00:00+00:00"
    run.pid.write_text("12\n")
    run.lock.write_text(json.dumps({"pid": 12, "host": "another", "started": 5.0, "since": since}))
    assert (status(run).state, status(run).host) == ("silent", "another")
    beat(run, host="another", pid=14)
    assert status(run).state == "running"


def test_ranks_of_an_earlier_start_are_not_taken_for_those_of_this_one(run: RunFolder) -> None:
    beat(run, ended=LastWords(code=1, what="no room"), time=time.time() - 60)
    assert status(run).state == "failed"
    with alone(run):
        assert (status(run).state, status(run).ranks) == ("running", ())


def test_losses_pace_and_what_is_left_come_from_the_end_of_the_metrics(run: RunFolder) -> None:
    planned(run, 100, evaluations=[30, 60, 90, 100], saves=[50, 100])
    steps = [line(step, 3.0 if step <= 10 else 1.0, seconds=2.0, memory_bytes=step) for step in range(1, 41)]
    steps.insert(30, line(30, 1.25, "validation", seconds=6.0))
    recorded(run, steps)
    run.event("saved", step=40, checkpoint="step-000040", best=False, seconds=4.0)
    run.checkpoint(40).mkdir(parents=True)
    run.pointer("best").write_text(json.dumps({"step": 30, "checkpoint": "step-000030", "value": 1.25}))
    with alone(run):
        found = status(run)
    assert (found.step, found.total, found.epoch, found.train_loss, found.validation_loss) == (40, 100, 0.5, 1.0, 1.25)
    assert found.gap == pytest.approx(0.25)
    assert found.tokens_per_second == pytest.approx(500)
    assert found.memory_bytes == 40
    assert found.seconds_left == pytest.approx(60 * 2 + 3 * 6 + 2 * 4)
    assert (found.checkpoint, found.best_step, found.best_value) == (40, 30, 1.25)


def test_before_the_first_step_it_takes_as_long_as_planned(run: RunFolder) -> None:
    planned(run, 100)
    with alone(run):
        assert (status(run).step, status(run).seconds_left, status(run).train_loss) == (0, 100.0, None)


def test_a_run_that_does_not_go_on_has_no_time_left_until_somebody_goes_on_with_it(run: RunFolder) -> None:
    planned(run, 100)
    recorded(run, [line(step, 1.0, seconds=2.0) for step in range(1, 41)])
    run.event("interrupted", step=40, signal="SIGTERM")
    assert (status(run).state, status(run).seconds_left) == ("stopped", None)
    with alone(run):
        beat(run)
        assert (status(run).state, status(run).seconds_left) == ("running", pytest.approx(120))


def test_torn_and_damaged_lines_are_passed_over(run: RunFolder) -> None:
    recorded(run, [line(1, 2.0), line(2, 1.5)])
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "kind": "train"}\nnonsense\n{"step": 4, "kin')
    with run.events.open("a") as file:
        file.write("nonsense\n[1]\n{}\n" + '{"event": "finis')
    run.plan.write_text("{")
    found = status(run)
    assert (found.step, found.train_loss, found.total, found.state) == (2, 1.5, 0, "new")
    recorded(run, [line(5, None)])
    assert (status(run).step, status(run).train_loss) == (5, None)
    run.metrics.write_text("")
    assert status(run).step == 0


def test_findings_are_the_plans_and_the_runs_own_each_once(run: RunFolder) -> None:
    planned_finding = {"code": "few-steps", "severity": "warn", "message": "9 steps", "evidence": {"steps": 9}, "changes": []}
    planned(run, 9, findings=[planned_finding])
    run.event("finding", **planned_finding)
    run.event("finding", code="save-failed", severity="warn", message="no room", step=5)
    run.event("finding", code="few-epochs", severity="note", message="1 epoch")
    found = status(run)
    assert [(finding.code, finding.evidence) for finding in found.findings][:2] == [("few-steps", {"steps": 9}), ("save-failed", {})]
    assert (found.alarms, found.diagnosed) == (("few-steps", "save-failed"), False)


def test_200_000_lines_take_no_longer_than_twenty(run: RunFolder) -> None:
    """Read whole and parsed they take more than a second."""
    recorded(run, [line(0, 2.0, "validation"), *(line(step, 1.0) for step in range(1, 200_001))])
    status(run)
    times = []
    for _ in range(5):
        began = time.process_time()
        assert (status(run).step, status(run).validation_loss) == (200_000, 2.0)
        times.append((time.process_time() - began) / 2)
    assert min(times) < 0.2


def test_a_status_is_plain_json(run: RunFolder) -> None:
    beat(run)
    run.event("finding", code="save-failed", severity="warn", message="no room", step=5)
    found = json.loads(json.dumps(status(run).to_json()))
    assert found["ranks"][0]["phase"] == "computing"
    assert found["findings"] == [{"code": "save-failed", "severity": "warn", "message": "no room", "evidence": {}, "changes": []}]

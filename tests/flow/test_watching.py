"""A launched run from outside: seen, saved, stopped, gone on with. Real processes on the demo model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import psutil
import pytest

from luthier import flow
from luthier.core import jsonl
from luthier.core.errors import UsageError
from luthier.launch.backend import Job
from luthier.runs.status import Status
from luthier.runs.store import RunFolder, alone
from tests.runs.recorded import line, planned, recorded, run_in

HOLD = """
import sys, time
from pathlib import Path
from luthier.runs.store import RunFolder, alone
with alone(RunFolder(Path(sys.argv[1]))):
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Path]:
    """A run of more steps than anybody waits for."""
    from luthier.demo import RECIPE

    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.read_text().replace("interactions.jsonl", str(RECIPE.parent / "interactions.jsonl")))
    yield path
    for found in (tmp_path / "runs").glob("*/job.json"):  # whatever the test left running
        job = Job.model_validate_json(found.read_bytes())
        if psutil.pid_exists(int(job.id)) and abs(psutil.Process(int(job.id)).create_time() - job.started) < 2:
            os.kill(int(job.id), signal.SIGKILL)


def luthier(*words: str) -> str:
    command = [sys.executable, "-m", "luthier.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_wish(run: RunFolder) -> None:
    end = time.monotonic() + 20
    while not run.control.exists() and time.monotonic() < end:
        time.sleep(0.05)


def until(name: str, holds: Callable[[Status], bool], seconds: float = 90) -> Status:
    end = time.monotonic() + seconds
    while not holds(found := flow.status(name)):
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_a_launched_run_is_seen_saved_stopped_and_gone_on_with(recipe: Path, runs: Path) -> None:
    words = ("launch", str(recipe), "training.epochs=400", "checkpoints.eval_steps=50000", "checkpoints.save_steps=50000")
    luthier(*words)
    assert flow.status("quickstart").state == "running"
    early = json.loads(luthier("save", "quickstart", "--json"))  # which is still preparing: it is obeyed after the first step
    assert early["step"] >= 1 and flow.status("quickstart").state == "running"
    until("quickstart", lambda found: found.step >= early["step"] + 3)
    (listed,) = json.loads(luthier("status", "--json"))["runs"]
    assert (listed["name"], listed["state"], listed["checkpoint"]) == ("quickstart", "running", early["step"])
    saved = json.loads(luthier("save", "quickstart", "--json"))
    assert saved["step"] >= early["step"] + 3 and Path(saved["checkpoint"], "manifest.json").exists()
    assert flow.status("quickstart").state == "running"
    stopped = json.loads(luthier("stop", "quickstart", "--json"))
    assert (stopped["state"], stopped["why"]) == ("stopped", "by SIGTERM")
    assert stopped["checkpoint"] == stopped["step"] >= saved["step"]
    assert "step" in "\n".join(flow.logs("quickstart"))
    luthier(*words)
    until("quickstart", lambda found: found.step > stopped["step"])
    resumed = [event for event in jsonl.records(runs / "quickstart" / "events.jsonl") if event["event"] == "resumed"]
    assert [event["step"] for event in resumed] == [stopped["step"]]
    assert flow.stop("quickstart", now=True).state == "killed"
    with pytest.raises(UsageError, match="run quickstart was killed: nothing of it runs"):
        flow.save("quickstart")


def test_what_was_launched_and_ended_before_it_began_has_failed(runs: Path) -> None:
    run = run_in(runs / "animals")
    ended = Job(on="local", id="1", host=os.uname().nodename, started=5.0)  # of that number there is another process now
    run.event("launched", on="local", id="1", host=ended.host)
    ended.write(run)
    found = flow.status("animals")
    assert (found.state, found.why) == ("failed", "local 1 ended before it began: luthier logs animals says why")


def test_a_job_of_a_host_that_cannot_be_asked_is_as_its_folder_says(runs: Path) -> None:
    run = run_in(runs / "animals")
    run.event("launched", on="local", id="1", host="another")
    Job(on="local", id="1", host="another", started=5.0).write(run)
    assert flow.status("animals").state == "queued"
    run.job.write_text("{")
    assert flow.status("animals").state == "queued"


def test_all_runs_stand_in_one_list_the_last_to_move_first(runs: Path) -> None:
    for name in ("first", "second", "third"):
        recorded(run := run_in(runs / name), [line(5, 1.0)])
        planned(run, 9)
    RunFolder(runs / "first").event("saved", step=5)
    assert [(each.name, each.step, each.total) for each in flow.statuses()] == [("first", 5, 9), ("third", 5, 9), ("second", 5, 9)]


def test_200_runs_are_listed_in_a_second_and_those_that_moved_last_with_what_their_curves_show(runs: Path) -> None:
    for number in range(200):
        run = run_in(runs / f"run-{number}")
        planned(run, 1000)
        recorded(run, [line(step, 2.0, grad_norm=50.0) for step in range(1, 301)])
        run.event("interrupted", step=300, signal="SIGTERM")
    began = time.process_time()
    found = flow.statuses()
    assert time.process_time() - began < 4  # one of them for the rules; 1.4 on a quiet machine
    assert len(found) == 200 and found[0].diagnosed and "gradient-large" in found[0].alarms
    assert [each.diagnosed for each in found] == sorted((each.diagnosed for each in found), reverse=True)


def test_runs_that_have_ended_are_not_looked_at_again_until_something_of_them_changes(runs: Path) -> None:
    for name in ("first", "second"):
        run = run_in(runs / name)
        recorded(run, [line(step, 2.0) for step in range(1, 41)])
        run.event("interrupted", step=40, signal="SIGTERM")
    seen = flow.every_run(runs, {})
    before = flow.statuses_of(seen)
    again = flow.statuses_of(flow.every_run(runs, seen))
    assert again == before and [each.findings for each in again] == [each.findings for each in before]
    RunFolder(runs / "first").metric(line(41, 0.5))
    assert next(each for each in flow.statuses_of(seen) if each.name == "first").train_loss == 0.5
    with alone(RunFolder(runs / "second")):
        assert next(each for each in flow.statuses_of(seen) if each.name == "second").state == "running"


@pytest.mark.parametrize("verb", [flow.save, flow.stop])
def test_where_nothing_runs_that_is_said(runs: Path, verb: Callable[[str], object]) -> None:
    run = run_in(runs / "animals")
    with pytest.raises(UsageError, match="run animals was not begun: nothing of it runs"):
        verb("animals")
    run.adapter.mkdir()
    run.event("finished", step=9)
    with pytest.raises(UsageError, match="run animals is finished: nothing of it runs"):
        verb("animals")
    assert not run.control.exists()


def test_what_waits_for_a_machine_has_nothing_to_save(runs: Path) -> None:
    run = run_in(runs / "animals")
    run.event("launched", on="slurm", id="7", host="login")
    with pytest.raises(UsageError, match="run animals waits for a machine, and has nothing to save yet"):
        flow.save("animals")


def test_a_run_that_does_not_answer_is_not_waited_for_without_end(runs: Path) -> None:
    from luthier.core.errors import RunError

    run = run_in(runs / "animals")
    with alone(run):
        with pytest.raises(RunError, match=r"has not saved in 0 s; it is in step 1, preparing, and will after it"):
            flow.save("animals", patience=0.3)
        assert flow.stop("animals", patience=0.3).state == "running"
        assert run.control.read_text() == "stop\n"


def test_a_run_that_is_killed_before_it_saves_has_not_saved(runs: Path) -> None:
    from luthier.core.errors import RunError

    run = run_in(runs / "animals")
    run.checkpoint(10).mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"holds\n"
        Thread(target=lambda: (wait_for_wish(run), holder.kill())).start()
        with pytest.raises(RunError, match="run animals ended before it saved: killed"):
            flow.save("animals", patience=20)


def test_a_host_that_cannot_be_asked_from_here_leaves_the_control_file(runs: Path) -> None:
    run = run_in(runs / "animals")
    Job(on="slurm", id="7", host="login", started=time.time()).write(run)
    with alone(run):
        flow.stop("animals", patience=0.3)
    assert run.control.read_text() == "stop\n"


def test_logs_are_followed_until_the_run_is_over(runs: Path) -> None:
    run = run_in(runs / "animals")
    with pytest.raises(UsageError, match="run animals has no log"):
        list(flow.logs("animals"))
    run.log.write_text("first\ntorn")
    assert list(flow.logs("animals")) == ["first", "torn"]
    with alone(run):
        said = flow.logs("animals", follow=True)
        assert next(said) == "first"
        run.log.write_text("first\ntorn no more\n")
        assert next(said) == "torn no more"
    assert list(said) == []
    (run.path / "log-1.txt").write_text("there\n")
    assert list(flow.logs("animals")) == ["log-1.txt: there", "log.txt: first", "log.txt: torn no more"]

"""`luthier launch`: what is told before, what is submitted, and runs that go on in the background and on a cluster of stand-ins."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from luthier import flow
from luthier.core import jsonl
from luthier.core.errors import PlanRefused, RunError, UsageError
from luthier.flow.launching import opened
from luthier.launch.backend import Job
from luthier.launch.backends import BACKENDS
from luthier.launch.nodes import Node
from luthier.runs.process import Named
from luthier.runs.store import RunFolder, folder_of
from tests.launch import cluster
from tests.test_flow_ranks import RECIPE, ended, luthier, wait_for

EACH = {
    "local": [],
    "torchrun": ["parallel.nodes=2", "parallel.data=2", "launch.options.endpoint=127.0.0.1", "launch.options.node=1"],
    "slurm": ["launch.gpu=H100x4", "launch.timeout=16 h", "launch.options.partition=gpu"],
    "ray": ["parallel.data=2"],
    "modal": ["launch.gpu=L4", "launch.timeout=60000 s"],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    sounds = ({"prompt": f"What does cat number {number} do?", "completion": "meows " * (1 + number % 5)} for number in range(24))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(sound) + "\n" for sound in sounds))
    return tmp_path


def eventually(what: Callable[[], bool], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


@pytest.mark.parametrize("on", EACH)
def test_a_dry_run_tells_what_would_run_and_does_nothing(home: Path, on: str) -> None:
    before = sorted(home.rglob("*"))
    text = flow.launch_text(flow.load(home / "recipe.yaml", [f"launch.on={on}", *EACH[on]]), force=["few-steps"])
    runs = "/luthier/runs" if on == "modal" else str(home / "runs")
    assert f"-P -m luthier.cli.main train {runs}/animals/recipe.yaml" in text
    assert "--force few-steps" in text
    assert {"torchrun": "LUTHIER_NODE=1", "slurm": "#SBATCH --time=960", "modal": "timeout: 60000 s"}.get(on, "setsid") in text
    assert sorted(home.rglob("*")) == before


def test_devices_that_are_not_here_are_refused_with_who_has_them(home: Path) -> None:
    for verb in (flow.train, flow.launch, flow.launch_text):
        with pytest.raises(PlanRefused, match=r"launch.gpu is H100x64, and this machine has .*\n  give it to a host that has them"):
            verb(flow.load(home / "recipe.yaml", ["launch.gpu=H100x64"]))
    assert "gpus-per-node=8" in flow.launch_text(flow.load(home / "recipe.yaml", ["launch.gpu=H100x8", "launch.on=slurm"]))


def test_a_plan_that_refuses_is_told_before_anything_is_submitted(home: Path) -> None:
    with pytest.raises(PlanRefused, match="float16-on-cpu"):
        flow.launch(flow.load(home / "recipe.yaml", ["model.dtype=float16"]))
    assert not (home / "runs").exists() or not list((home / "runs").iterdir())


def test_a_run_that_is_under_way_or_finished_is_not_submitted_again(home: Path) -> None:
    loaded = flow.load(home / "recipe.yaml")
    run = folder_of("animals", loaded.text)
    run.path.mkdir(parents=True)
    run.recipe.write_text(loaded.text)
    with subprocess.Popen(["sleep", "60"]) as process:
        named = Named.of(process.pid)
        Job(on="local", id=str(process.pid), host=named.host, started=named.started).write(run)
        elsewhere = flow.load(home / "recipe.yaml", ["launch.on=slurm", *EACH["slurm"]])
        for again in (loaded, elsewhere):
            with pytest.raises(UsageError, match=f"run animals is running already, as local {process.pid}"):
                flow.launch(again)
        process.kill()
    run.adapter.mkdir()
    run.event("finished", step=6)
    with pytest.raises(UsageError, match="run animals is finished"):
        flow.launch(loaded)


def test_a_node_waits_for_the_first_to_open_the_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, second = flow.load(home / "recipe.yaml"), Node(number=1, count=2, endpoint="a:1")
    monkeypatch.setattr("luthier.launch.nodes.SECONDS_TO_JOIN", 0.1)
    with pytest.raises(RunError, match="the first node has not opened run animals\n  give the command on the first node, too"):
        opened(loaded, second, flow.SILENT)
    run = folder_of("animals", loaded.text)
    run.path.mkdir(parents=True)
    run.recipe.write_text(loaded.text)
    run.data.write_text("{}")
    assert opened(loaded, second, flow.SILENT) == RunFolder(run.path, read_only=True, node=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_in_the_background_outlives_the_terminal_is_stopped_with_a_save_and_goes_on(home: Path) -> None:
    words = ("launch", "recipe.yaml", "training.max_steps=300", "checkpoints.save_steps=100", "checkpoints.eval_steps=100")
    run = RunFolder(home / "runs" / "animals")
    environment = {**os.environ, "PYTHONPATH": str(Path(flow.__file__).parents[2])}
    command = [sys.executable, "-m", "luthier.cli.main", *words]
    shell = subprocess.Popen(["bash", "-c", '"$@"; sleep 60', "bash", *command], cwd=home, env=environment, start_new_session=True)
    try:
        eventually(run.job.exists)
    finally:
        os.killpg(shell.pid, signal.SIGHUP)  # the terminal is closed, the user logs out
        shell.wait(timeout=20)
    job = Job.read(run)
    assert job is not None
    local = BACKENDS["local"]
    wait_for(run.metrics, 3, 300)
    assert local.status(run, job) == "running"
    assert int(run.pid.read_text()) == int(job.id)
    local.stop(run, job, now=False)
    eventually(lambda: local.status(run, job) == "over", 120)
    stopped = json.loads(run.pointer("latest").read_text())["step"]
    assert 3 <= stopped < 300

    again = flow.launch(flow.load(home / "recipe.yaml", words[2:])).job
    eventually(lambda: local.status(run, again) == "over")
    assert run.finished, run.log.read_text()
    events = [(record["event"], record.get("step")) for record in jsonl.records(run.events)]
    assert [step for event, step in events if event == "resumed"] == [stopped]
    assert [event for event, _ in events].count("launched") == 2
    assert psutil.pid_exists(int(job.id)) is False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_slurm_job_whose_time_is_over_is_queued_again_and_comes_to_its_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.write(home / "bin")
    (home / "memory").mkdir()
    run = RunFolder(home / "runs" / "animals")
    (home / "memory" / "warn_when").write_text(str(run.metrics))
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(home / "memory"))
    monkeypatch.setenv("PYTHONPATH", str(Path(flow.__file__).parents[2]))
    changes = ["training.max_steps=300", "checkpoints.save_steps=100", "checkpoints.eval_steps=100"]
    out, err = ended(luthier(home, "launch", "recipe.yaml", "--on", "slurm", *changes))
    assert "job: slurm 100" in out, err
    eventually(lambda: run.finished)
    events = [(record["event"], record.get("step"), record.get("signal")) for record in jsonl.records(run.events)]
    (saved,) = [step for event, step, signal in events if event == "interrupted" and signal == "SIGUSR1"]
    assert [step for event, step, _ in events if event == "resumed"] == [saved]
    assert (home / "memory" / "100.runs").read_text() == "xx"

"""Ray Train for real, with two workers on this machine: the ranks, their supervision and their run are those of torchrun."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from luthier.core import jsonl
from luthier.runs.heartbeat import beats
from luthier.runs.store import RunFolder
from tests.test_flow_ranks import RECIPE, ended, luthier, wait_for

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
LONG = 400
"""Seconds: a Ray starts slowly where others work."""
CHANGES = ("parallel.data=2", "lora.dropout=0.1", "training.max_steps=30", "checkpoints.save_steps=5", "checkpoints.eval_steps=15")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    sounds = ({"prompt": f"What does cat number {number} do?", "completion": "meows " * (1 + number % 5)} for number in range(24))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(sound) + "\n" for sound in sounds))
    return tmp_path


def of_ray(path: Path) -> list[psutil.Process]:
    """Processes of a Ray that a run has started: their environment names its runs."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LUTHIER_RUNS") == str(path) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def on_ray(home: Path) -> Iterator[subprocess.Popen[str]]:
    """The command; whatever a test finds, it does not outlive it."""
    process = luthier(home, "train", "recipe.yaml", "name=ray", "launch.on=ray", "launch.restarts=1", *CHANGES)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_on_ray_is_one_by_torchrun_and_goes_on_when_a_worker_or_the_user_ends_it(home: Path) -> None:
    process = luthier(home, "train", "recipe.yaml", "name=torchrun", *CHANGES)
    _, err = ended(process, LONG)
    assert process.returncode == 0, err

    run = RunFolder(home / "runs" / "ray")
    with on_ray(home) as process:
        wait_for(run.metrics, 7, LONG)
        os.kill(beats(run)[1].pid, signal.SIGKILL)
        wait_for(run.metrics, 15, LONG)
        process.send_signal(signal.SIGTERM)
        _, err = ended(process, LONG)
        assert process.returncode == 143, err + run.log.read_text()
        assert psutil.wait_procs(of_ray(home / "runs"), timeout=60)[1] == []
    with on_ray(home) as process:
        _, err = ended(process, LONG)
        assert process.returncode == 0, err + run.log.read_text()

    events = [record["event"] for record in jsonl.records(run.events)]
    assert [events.count(kind) for kind in ("dead", "restarted", "interrupted", "resumed", "finished")] == [1, 1, 1, 2, 1]
    whole = RunFolder(home / "runs" / "torchrun")
    for file in ("adapter.safetensors", "optimizer.safetensors"):
        assert (whole.checkpoint(30) / file).read_bytes() == (run.checkpoint(30) / file).read_bytes()
    assert not (run.path / "ray").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_neither_ranks_nor_ray_outlive_the_command(home: Path) -> None:
    run = RunFolder(home / "runs" / "ray")
    with on_ray(home):
        wait_for(run.metrics, 3, LONG)
        started = of_ray(home / "runs")
        assert len(started) > 4  # command, driver, ranks, and a Ray of its own
    assert psutil.wait_procs(started, timeout=60)[1] == []

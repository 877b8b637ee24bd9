"""Two nodes on the loopback: the same command on each, torchrun and gloo between them, one run folder; ended, begun again, finished."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core import jsonl
from luthier.runs.heartbeat import beats
from luthier.runs.store import RunFolder
from tests.test_flow_ranks import RECIPE, SOURCE, ended, ranks_of, wait_for

CHANGES = ("lora.dropout=0.1", "training.max_steps=20", "checkpoints.save_steps=4", "checkpoints.eval_steps=10")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    sounds = ({"prompt": f"What does cat number {number} do?", "completion": "meows " * (1 + number % 5)} for number in range(24))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(sound) + "\n" for sound in sounds))
    return tmp_path


@pytest.fixture
def endpoint() -> str:
    """A port that was free just now."""
    with socket.socket() as asking:
        asking.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{asking.getsockname()[1]}"


def node(home: Path, number: int, endpoint: str, *changes: str) -> subprocess.Popen[str]:
    """The command as it is given on every node; the environment says which this is."""
    words = ["launch.on=torchrun", "parallel.nodes=2", "parallel.data=2", f"launch.options.endpoint={endpoint}", *CHANGES, *changes]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "LUTHIER_RUNS": str(home / "runs"), "LUTHIER_NODE": str(number)}
    command = [sys.executable, "-m", "luthier.cli.main", "train", "recipe.yaml", *words]
    return subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_nodes_are_ended_by_a_signal_to_one_and_go_on_when_both_are_started_again(home: Path, endpoint: str) -> None:
    whole = RunFolder(home / "runs" / "whole")
    first, second = node(home, 0, endpoint, "name=whole"), node(home, 1, endpoint, "name=whole")
    _, err = ended(first, 400)
    assert (first.returncode, second.wait(timeout=60)) == (0, 0), err + whole.log.read_text()
    assert whole.finished
    assert json.loads(whole.plan.read_text())["steps"]["replicas"] == 2

    broken = RunFolder(home / "runs" / "broken")
    both = [node(home, number, endpoint, "name=broken") for number in (1, 0)]
    wait_for(broken.metrics, 7, 300)
    both[0].send_signal(signal.SIGTERM)  # node 1
    said = [ended(process, 400)[1] for process in both]
    assert [process.returncode for process in both] == [143, 143], said
    events = [record["event"] for record in jsonl.records(broken.events)]
    assert events.count("interrupted") == 1
    assert "dead" not in events

    both = [node(home, number, endpoint, "name=broken") for number in (1, 0)]
    said = [ended(process, 400)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for file in ("adapter.safetensors", "optimizer.safetensors"):
        assert (whole.checkpoint(20) / file).read_bytes() == (broken.checkpoint(20) / file).read_bytes()
    assert [line["step"] for line in jsonl.records(broken.metrics) if line["kind"] == "train"] == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_rank_that_is_killed_on_the_second_node_is_begun_again_on_both(home: Path, endpoint: str) -> None:
    run = RunFolder(home / "runs" / "animals")
    first, second = (node(home, number, endpoint, "launch.restarts=1") for number in (0, 1))
    try:
        wait_for(run.metrics, 6, 300)
        (rank,) = ranks_of(second)
        assert beats(run)[1].pid == rank.pid  # the first node has the first ranks
        rank.kill()
    finally:
        said = [ended(process, 400)[1] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], said
    records = list(jsonl.records(run.events))
    (dead,) = [record for record in records if record["event"] == "dead"]
    assert (dead["node"], dead["rank"]) == (1, 1)
    assert "SIGKILL" in dead["how"]
    assert [record["number"] for record in records if record["event"] == "restarted"] == [1]
    assert run.finished

"""A sweep that was killed goes on, and its trials are bit for bit those of one that was not: real processes, real SIGKILL."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core import jsonl
from luthier.runs.store import RunFolder
from tests.faults.harness import Start, Starter, outcome, write_recipe

OVER = ("--over", "lora.r=2,4", "--over", "training.learning_rate=0.003,0.0001", "--halving", "--json")
KILLS = ("optim/adam.py:adam:4", "sweep/folder.py:settle:1", "train/final.py:save_final:1")
"""Within a trial, as one ends, and before the adapter."""


def swept(folder: Path, processes: Starter, runs: str, kill_in: str = "") -> tuple[int, dict[str, Any]]:
    recipe = write_recipe(folder)
    ended = processes.run(Start(words=("sweep", str(recipe), *OVER), runs=str(folder / runs / "runs"), kill_in=kill_in, seconds=120))
    assert ended.killed if kill_in else ended.code == 0, ended.said
    table = folder / runs / "sweeps" / "run" / "table.json"
    return ended.code, json.loads(table.read_text()) if not kill_in else {}


@pytest.mark.slow
def test_a_sweep_killed_in_every_phase_is_the_uninterrupted_one(tmp_path: Path, processes: Starter) -> None:
    _, whole = swept(tmp_path, processes, "whole")
    for where in KILLS:
        swept(tmp_path, processes, "killed", where)
    _, found = swept(tmp_path, processes, "killed")
    assert [trial["state"] for trial in found["trials"]] == ["finished", "stopped", "stopped", "stopped"]
    assert found["trials"] == whole["trials"] and found["best"] == whole["best"]
    best = whole["best"]["run"]
    left, other = (RunFolder(tmp_path / runs / "runs" / best) for runs in ("whole", "killed"))
    assert outcome(left, 6) == outcome(other, 6)
    events = [event["event"] for event in jsonl.records(tmp_path / "killed" / "sweeps" / "run" / "events.jsonl")]
    assert events.count("begun") == 1 and "failed" not in events
    spent = json.loads((tmp_path / "killed" / "sweeps" / "run" / "sweep.json").read_text())
    assert spent["turn"] is None and spent["spent"]["seconds"] > 0

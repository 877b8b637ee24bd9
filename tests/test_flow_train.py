"""`flow.train` and its run folder: one data set, one process at a time, and a word on which recipe the folder has."""

import json
import os
import shutil
from pathlib import Path

import pytest

from luthier import flow
from luthier.core.errors import RunError, UsageError
from luthier.core.progress import Silent
from luthier.runs import store

RECIPE = """\
name: animals
model: {base: demo, dtype: float32}
data: {sources: [{path: rows.jsonl}], split: {train: 1, validation: 0, test: 0}}
training: {max_steps: 1, global_batch_size: 2}
"""


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    write_rows(tmp_path, "meows")
    return tmp_path


def write_rows(home: Path, sound: str) -> None:
    rows = ({"prompt": f"What does cat number {number} do?", "completion": sound} for number in range(4))
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(home: Path, *overrides: str, progress: Heard | None = None) -> store.RunFolder:
    return flow.train(flow.load(home / "recipe.yaml", overrides), progress or Heard()).run


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_never_mixes_two_data_sets(home: Path, finished: bool) -> None:
    run = train(home)
    if not finished:
        run.events.unlink()
    old = run.data.read_bytes()
    write_rows(home, "purrs")
    with pytest.raises(RunError, match=r"(?s)runs/animals: the rows have changed since this run began.*another name"):
        train(home)
    assert run.data.read_bytes() == old
    write_rows(home, "meows")
    assert train(home) == run


def test_a_run_is_trained_by_one_process_at_a_time(home: Path) -> None:
    run = train(home)
    shutil.rmtree(run.adapter)
    with store.alone(run), pytest.raises(UsageError, match=rf"run animals is being trained by process {os.getpid()}"):
        train(home)
    assert not run.adapter.exists()


def test_the_run_is_held_while_it_is_trained(home: Path) -> None:
    pids: list[str] = []

    class Looking(Heard):
        def say(self, line: str) -> None:
            if (home / "runs" / "animals" / "pid").exists():
                pids.append((home / "runs" / "animals" / "pid").read_text())

    train(home, progress=Looking())
    assert set(pids) == {f"{os.getpid()}\n"}


def test_a_second_recipe_of_the_same_name_is_told_its_differences(home: Path) -> None:
    train(home)
    heard = Heard()
    assert train(home, "seed=7", "lora.r=4", progress=heard).name == "animals-2"
    assert any("animals-2" in line and "seed: 42 → 7" in line and "lora.r: 16 → 4" in line for line in heard.said)


def test_an_adapter_that_was_deleted_is_built_again_from_the_checkpoints(home: Path) -> None:
    run = train(home)
    before = (run.adapter / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run.adapter)
    assert train(home) == run
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == before

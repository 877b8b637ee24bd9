"""Run folders: the same recipe comes back to its folder, another one gets its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.errors import UsageError
from luthier.core.files import DiskError
from luthier.runs import store


@pytest.fixture(autouse=True)
def _runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a  # as written\n")
    return path


def test_the_same_recipe_comes_back_to_its_folder(original: Path) -> None:
    first = store.open_or_create("a", "name: a\n", original)
    assert store.open_or_create("a", "name: a\n", original) == first
    assert (first.path / "recipe.original").read_text() == "name: a  # as written\n"


def test_another_recipe_gets_the_next_number(original: Path) -> None:
    store.open_or_create("a", "seed: 1\n", original)
    assert store.open_or_create("a", "seed: 2\n", original).name == "a-2"
    assert store.open_or_create("a", "seed: 3\n", original).name == "a-3"
    assert store.open_or_create("a", "seed: 2\n", original).name == "a-2"


def test_an_unknown_run_is_told_with_those_that_exist(original: Path) -> None:
    store.open_or_create("known", "seed: 1\n", original)
    with pytest.raises(UsageError, match=r"(?s)no run called 'other'.*known"):
        store.find("other")


def test_a_run_is_finished_when_its_events_say_so(original: Path) -> None:
    run = store.open_or_create("a", "seed: 1\n", original)
    assert not run.finished
    run.event("started")
    assert not run.finished
    run.adapter.mkdir()
    assert not run.finished
    run.event("finished", step=3)
    assert run.finished


def test_a_run_whose_adapter_was_deleted_is_not_finished(original: Path) -> None:
    run = store.open_or_create("a", "seed: 1\n", original)
    run.event("finished", step=3)
    assert not run.finished


def test_a_run_is_finished_whatever_has_happened_to_other_lines_of_its_events(original: Path) -> None:
    run = store.open_or_create("a", "seed: 1\n", original)
    run.adapter.mkdir()
    run.events.write_bytes(b'\x00\x00\n{"event": "fin\n[]\n{"no": 1}\n')
    assert not run.finished
    run.event("finished", step=3)
    assert run.finished


def test_runs_of_the_same_recipe_are_one_run_and_of_another_are_not(original: Path) -> None:
    one, other = (store.open_or_create("a", text, original) for text in ("seed: 1\n", "seed: 2\n"))
    assert one.identity == store.open_or_create("a", "seed: 1\n", original).identity != other.identity


def test_an_event_that_cannot_be_written_names_the_disk(original: Path) -> None:
    run = store.open_or_create("a", "seed: 1\n", original)
    run.events.unlink()
    run.events.mkdir()
    with pytest.raises(DiskError, match=r"(?s)runs/a: events\.jsonl cannot be written: Is a directory.*GB are free"):
        run.event("started")


def test_a_second_holder_of_a_run_is_told_who_has_it(original: Path) -> None:
    run = store.open_or_create("a", "seed: 1\n", original)
    with store.alone(run):
        assert run.pid.read_text() == f"{os.getpid()}\n"
        with pytest.raises(UsageError, match=rf"run a is being trained by process {os.getpid()}"), store.alone(run):
            pass
    assert not run.pid.exists()
    with store.alone(run):
        pass


def test_a_killed_process_lets_go_of_its_run(original: Path) -> None:
    run = store.open_or_create("a", "seed: 1\n", original)
    code = """
import sys
from pathlib import Path
from luthier.runs.store import RunFolder, alone
with alone(RunFolder(Path(sys.argv[1]))):
    print("in", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"in\n"
        with pytest.raises(UsageError, match=rf"process {holder.pid}"), store.alone(run):
            pass
        holder.kill()
        holder.wait(timeout=20)
        with store.alone(run):
            assert run.pid.read_text() == f"{os.getpid()}\n"


def test_a_recipe_that_differs_only_in_where_it_is_trained_is_the_same_run(original: Path) -> None:
    run = store.open_or_create("a", "seed: 1\nparallel:\n  data: 1\nlaunch:\n  restarts: 0\n", original)
    assert store.open_or_create("a", "seed: 1\nparallel:\n  data: 2\nlaunch:\n  restarts: 3\n", original) == run
    assert store.open_or_create("a", "seed: 2\nparallel:\n  data: 2\nlaunch:\n  restarts: 3\n", original).name == "a-2"


def test_a_folder_that_is_read_only_takes_neither_events_nor_metrics(tmp_path: Path) -> None:
    run = store.RunFolder(tmp_path, read_only=True)
    run.event("started")
    run.metric({"step": 1})
    assert list(tmp_path.iterdir()) == []

"""environment.json says with what a run was made, and holds no environment variables."""

from pathlib import Path

import pytest

from luthier.core.hardware import this_machine
from luthier.runs.environment import PACKAGES, describe
from tests.runs.summaries import summary


def test_it_names_versions_hardware_hashes_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/luthier", "train", "my recipe.yaml"])
    record = describe(summary(hash="abc"))
    assert set(record["packages"]) == set(PACKAGES)
    assert record["command"] == "luthier train 'my recipe.yaml'"
    assert record["data_hash"] == "abc"
    monkeypatch.setattr("sys.argv", ["/somewhere/luthier/cli/main.py", "train", "recipe.yaml"])  # in the background
    assert describe(summary())["command"] == "luthier train recipe.yaml"


def test_no_secret_of_the_environment_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    assert "hf_planted" not in str(describe(summary()))


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert describe(summary())["git_commit"] == ""


def test_this_machine_has_cores_and_memory() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28

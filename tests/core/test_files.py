"""Files are whole or absent; JSON is strict; torn last lines are borne."""

import json
from pathlib import Path

import pytest

from luthier.core import files, jsonl


def test_a_write_leaves_no_part_file(tmp_path: Path) -> None:
    files.write(tmp_path / "a.txt", "one")
    files.write(tmp_path / "a.txt", "two")
    assert (tmp_path / "a.txt").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_cannot_start_leaves_the_old_file(tmp_path: Path) -> None:
    files.write(tmp_path / "a.txt", "one")
    (tmp_path / "a.txt.part").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write(tmp_path / "a.txt", "two")
    assert (tmp_path / "a.txt").read_text() == "one"


def test_numbers_that_are_not_finite_become_null() -> None:
    text = jsonl.dumps({"loss": float("nan"), "norms": [float("inf"), 1.5], "deep": {"x": float("-inf")}})
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {"loss": None, "norms": [None, 1.5], "deep": {"x": None}}


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    jsonl.append(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert list(jsonl.records(path)) == [{"step": 1}]


def test_a_record_after_a_torn_line_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "started"}\n{"event": "sav')
    jsonl.append(path, {"event": "resumed"})
    assert [record["event"] for record in jsonl.records(path)] == ["started", "resumed"]

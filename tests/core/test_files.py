"""Files are whole or absent; JSON is strict; torn last lines are borne."""

import json
import shutil
from pathlib import Path

import pytest

from luthier.core import files, jsonl
from luthier.core.files import DiskError


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


def filled(folder: Path, content: str, check: str = "") -> None:
    """Replace a folder by one with a file of this content; `check` is what the check raises."""

    def look(written: Path) -> None:
        assert (written / "a.txt").read_text() == content
        if check:
            raise ValueError(check)

    with files.replacing(folder, check=look) as part:
        (part / "a.txt").write_text(content)


def test_a_folder_takes_the_place_of_another_once_it_has_been_checked(tmp_path: Path) -> None:
    filled(tmp_path / "deep" / "folder", "one")
    filled(tmp_path / "deep" / "folder", "two")
    assert (tmp_path / "deep" / "folder" / "a.txt").read_text() == "two"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["folder"]


@pytest.mark.parametrize("before", [False, True])
def test_a_folder_that_fails_its_check_leaves_what_was_there(tmp_path: Path, before: bool) -> None:
    if before:
        filled(tmp_path / "folder", "one")
    with pytest.raises(ValueError, match="not what I wrote"):
        filled(tmp_path / "folder", "two", check="not what I wrote")
    assert [path.read_text() for path in tmp_path.rglob("*.txt")] == (["one"] if before else [])
    assert [path.name for path in tmp_path.iterdir()] == (["folder"] if before else [])


def test_a_folder_that_is_not_filled_to_the_end_leaves_what_was_there(tmp_path: Path) -> None:
    filled(tmp_path / "folder", "one")
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "folder", check=lambda _: None) as part:
        (part / "a.txt").write_text("tw")
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.rglob("*.txt")] == ["one"]


def test_what_a_crash_left_between_two_names_is_put_back(tmp_path: Path) -> None:
    filled(tmp_path / "folder", "one")
    (tmp_path / "folder").rename(tmp_path / "folder.old")
    files.put_back(tmp_path / "folder")
    assert (tmp_path / "folder" / "a.txt").read_text() == "one"
    shutil.copytree(tmp_path / "folder", tmp_path / "folder.old")
    filled(tmp_path / "folder", "two")
    files.put_back(tmp_path / "folder")
    assert [path.read_text() for path in tmp_path.rglob("*.txt")] == ["two"]


def test_a_folder_is_removed_whole(tmp_path: Path) -> None:
    filled(tmp_path / "folder", "one")
    files.remove(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_told_with_where_why_and_what_to_change(tmp_path: Path) -> None:
    said = r"(?s)none/here: a page cannot be written: No such file.*see that the disk is there.*GB are free there.*the same command goes on"
    with pytest.raises(DiskError, match=said), files.told("a page", tmp_path / "none" / "here"):
        (tmp_path / "none" / "here").write_text("one")


def test_a_lock_is_had_by_one(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        files.lock(first, wait=False)
        with pytest.raises(BlockingIOError):
            files.lock(second, wait=False)
        first.close()
        files.lock(second, wait=True)


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


def test_what_can_be_read_of_a_damaged_file_is_read_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": 1}', b'{"step": 2', b"\x00\x00", b"\xff", b"[3]", b"", b"[" * 10_000, b'{"step": 4}', b'{"step": 5, "lo']
    path.write_bytes(b"\n".join(lines))
    found = jsonl.salvage(path)
    assert (found.records, found.num_damaged) == ([{"step": 1}, {"step": 4}], 6)
    path.unlink()
    assert jsonl.salvage(path).records == []


def test_a_file_that_was_salvaged_is_read_on_from_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step"')
    first = jsonl.salvage(path)
    assert jsonl.salvage_on(path, first) is first
    with path.open("a") as file:
        file.write(': 2}\n{"step": 3}\n')
    second = jsonl.salvage_on(path, first)
    assert (second.records, second.num_damaged, second.offset) == ([{"step": 1}, {"step": 2}, {"step": 3}], 1, path.stat().st_size)
    assert len(first.records) == 1
    path.rename(tmp_path / "old")
    path.write_text('{"step": 9}\n' * 9)  # another file, which is longer
    assert len(jsonl.salvage_on(path, second).records) == 9
    path.write_text('{"step": 7}\n')  # the same file, which has become shorter
    assert jsonl.salvage_on(path, jsonl.Salvaged(offset=500, file=second.file)).records == [{"step": 7}]
    path.unlink()
    assert jsonl.salvage_on(path, second) == jsonl.Salvaged()


def test_the_stamp_of_files_is_another_once_one_is_written_added_or_taken_away(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    first = files.stamp(one, two)
    assert files.stamp(one, two) == first
    two.write_text("2")
    second = files.stamp(one, two)
    two.unlink()
    assert files.stamp(one, two) == first != second
    files.write(one, "3")  # of as many bytes
    assert files.stamp(one, two) != first

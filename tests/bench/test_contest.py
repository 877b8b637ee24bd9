"""The contest: who runs when, and what becomes of one that fails."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.contest import Course, compete
from bench.protocol import Files, Row, write_rows
from bench.settings import Setting


@pytest.fixture
def course(tmp_path: Path) -> Course:
    write_rows(tmp_path / "rows.jsonl", [Row(messages=[], ids=[5, 6, 7], supervised=[0, 1, 1])])
    return Course(
        files=Files(model="", template="", dialogues="", rows=str(tmp_path / "rows.jsonl"), whole=""),
        batch=1,
        dropout=0.0,
        device="cpu",
        work=tmp_path,
        rounds=3,
        variables={},
        allocator="glibc",
        patience_seconds=60,
        floor_of=floor_of,
        told=lambda line: None,
    )


def floor_of(setting: Setting, order: Sequence[Sequence[int]], resolved: Mapping[str, Any]) -> float:
    return 100.0 * len(order) if resolved["spring"] == "wound" else 0.0


def clockwork(course: Course, name: str, **options: Any) -> Setting:
    options |= {"name": name, "diary": str(course.work / "diary")}
    return Setting(name=name, worker="tests.bench.clockwork", environment="", options=options)


def test_contestants_take_turns_after_each_has_warmed_up(course: Course) -> None:
    entries = compete([clockwork(course, "A"), clockwork(course, "B")], course)
    assert (course.work / "diary").read_text() == "AB" + "AB" * 3
    assert [len(entry.rounds) for entry in entries] == [3, 3]


def test_an_entry_says_what_was_trained_and_what_it_took(course: Course) -> None:
    (entry,) = compete([clockwork(course, "A")], course)
    assert entry.counted is not None
    assert (entry.counted.rows, entry.counted.tokens, entry.counted.supervised) == (1, 3, 2)
    assert entry.resolved == {"spring": "wound"} and set(entry.versions) == {"torch"}
    assert entry.variables["LD_PRELOAD"] == "" and "GLIBC_TUNABLES" in entry.variables
    assert entry.first_step_seconds > 0 and entry.peak_bytes > 1_000_000
    assert [item.floor_operations for item in entry.rounds] == [100.0] * 3


@pytest.mark.parametrize(("breaks_in", "rounds"), [(0, 0), (2, 1)])
def test_one_that_fails_drops_out_and_the_others_go_on(course: Course, breaks_in: int, rounds: int) -> None:
    broken, whole = compete([clockwork(course, "A", breaks_in=breaks_in), clockwork(course, "B")], course)
    assert "a spring broke" in broken.failed and len(broken.rounds) == rounds
    assert whole.failed == "" and len(whole.rounds) == 3

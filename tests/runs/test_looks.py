"""Looks at a run: counted once for the same answers, in its folder."""

from pathlib import Path

import pytest

from luthier.runs.looks import look
from luthier.runs.store import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_to_ask_again_of_the_same_is_no_new_look(run: RunFolder) -> None:
    assert [look(run, evidence, "base", {"answers": 100}).number for evidence in ("a", "a", "b", "a", "c", "b")] == [1, 1, 2, 1, 3, 2]


def test_a_first_look_has_nothing_to_say_and_later_ones_do(run: RunFolder) -> None:
    assert list(look(run, "a", "base", {"answers": 100}).findings()) == []
    (finding,) = look(run, "b", "base", {"answers": 200}).findings()
    assert finding.code == "looked_before" and finding.evidence == {"look": 2}


def test_rows_that_went_missing_between_two_looks_are_told(run: RunFolder) -> None:
    look(run, "a", "base", {"answers": 100, "known": 50})
    codes = [finding.code for finding in look(run, "b", "base", {"answers": 90, "known": 50}).findings()]
    assert codes == ["looked_before", "rows_withdrawn"]


def test_a_torn_line_loses_no_look(run: RunFolder) -> None:
    for evidence in ("a", "b"):
        look(run, evidence, "base", {})
    run.looks.write_bytes(run.looks.read_bytes() + b'{"look": 3, "ev')
    assert look(run, "c", "base", {}).number == 3


def test_each_baseline_is_a_trial_of_its_own(run: RunFolder) -> None:
    found = [
        look(run, evidence, baseline, {})
        for evidence, baseline in (("a", "base"), ("b", "first"), ("c", "base"), ("d", "second"), ("b", "first"))
    ]
    assert [(each.number, each.trial) for each in found] == [(1, 1), (2, 2), (3, 1), (4, 3), (2, 2)]


def test_what_people_say_belongs_to_the_look_at_the_answers_when_it_is_first_heard(run: RunFolder) -> None:
    looks = ("a", "a+ann", "a", "a+ann", "a+ann+ben", "b", "b+ann", "a+cleo", "c+ann", "c")
    assert [look(run, evidence, "base", {}).number for evidence in looks] == [1, 1, 1, 1, 2, 3, 3, 4, 5, 6]

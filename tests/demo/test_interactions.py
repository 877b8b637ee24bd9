"""The demo data: the shipped file is what the generator makes, and it is as clean and as dirty as the generator's constants say."""

import hashlib
import json
import re
from collections import Counter

import pytest

from luthier.demo import BUILD_RECORD, DATA
from luthier.demo import interactions as log
from luthier.demo.interactions import Interaction


@pytest.fixture(scope="module")
def rows() -> list[Interaction]:
    """The well-formed rows of the shipped log."""
    read = []
    for line in DATA.read_text(encoding="utf-8").splitlines():
        try:
            row = Interaction(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        if isinstance(row.prompt, str) and isinstance(row.response, str):
            read.append(row)
    return read


@pytest.fixture(scope="module")
def good(rows: list[Interaction]) -> list[Interaction]:
    """Successful rows, each prompt once."""
    return list({row.prompt: row for row in rows if row.success}.values())


def test_the_shipped_log_is_what_the_generator_makes(tmp_path):
    log.write_log(tmp_path / "log.jsonl")
    assert (tmp_path / "log.jsonl").read_bytes() == DATA.read_bytes()


def test_another_seed_makes_another_log():
    assert log.log_lines(5) != log.log_lines(6)


def test_the_record_names_the_logs_hash_and_length():
    record = json.loads(BUILD_RECORD.read_text(encoding="utf-8"))["data"]
    assert record == {"seed": log.SEED, "lines": len(log.log_lines()), "sha256": hashlib.sha256(DATA.read_bytes()).hexdigest()}


def test_the_log_holds_the_documented_kinds_of_rows(rows, good):
    lines = DATA.read_text(encoding="utf-8").splitlines()
    repeated = log.NUM_EXACT_DUPLICATES + log.NUM_NEAR_DUPLICATES
    assert len(lines) == sum(log.NUM_GOOD.values()) + log.NUM_FAILED + repeated + log.NUM_OVER_LONG + log.NUM_MALFORMED
    assert len(lines) - len(rows) == log.NUM_MALFORMED
    assert sum(not row.success for row in rows) == log.NUM_FAILED
    assert len(good) == sum(log.NUM_GOOD.values()) + log.NUM_NEAR_DUPLICATES + log.NUM_OVER_LONG
    assert len(lines) >= 1500 and DATA.stat().st_size <= 2_000_000


def test_agents_have_the_documented_uneven_shares(good):
    counts = Counter(row.agent for row in good)
    assert counts == Counter(log.NUM_GOOD) + Counter(coder=log.NUM_NEAR_DUPLICATES + log.NUM_OVER_LONG)


def test_ids_are_unique_and_times_rise(rows):
    assert len({row.id for row in rows}) == len(rows)
    assert [row.timestamp for row in rows] == sorted(row.timestamp for row in rows)


def test_no_constant_answer_would_do(good):
    assert Counter(row.response for row in good).most_common(1)[0][1] <= 0.05 * len(good)


def test_what_an_answer_copies_stands_in_its_prompt(good):
    copied = {
        "coder": r"(?:feat|(?:urgent|major|minor|trivial) fix)\(\w+\) (\S+)",
        "tester": r"(?:pass|fail|flaky) (\S+)",
        "researcher": r"(?:adopt|ask) (\S+) \((\w+)\)",
        "coordinator": r"(HRB-\d+) -> (\w+), (\w+)",
        "reviewer": r"PR (\d+) (?:approve|reject)",
    }
    for row in good:
        found = re.fullmatch(copied[row.agent], row.response)
        assert found and all(word in row.prompt for word in found.groups()), row


def test_failed_rows_hold_no_right_answer(rows, good):
    right = {row.response for row in good}
    assert not right & {row.response for row in rows if not row.success}


def test_rows_of_one_ticket_share_an_area(good):
    areas = {row.ticket: row.response.partition("(")[2].partition(")")[0] for row in good if row.agent == "coder"}
    tested = [row for row in good if row.agent == "tester"]
    assert tested and all(areas[row.ticket] in row.prompt for row in tested)

"""docs/guarantees.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8"))


def test_every_promise_names_a_test_that_exists() -> None:
    assert len(NAMED) > 40
    assert [f"{file}::{name}" for file, name in NAMED if f"\ndef {name}(" not in (ROOT / file).read_text(encoding="utf-8")] == []


def test_every_line_of_a_table_names_a_test() -> None:
    lines = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8").splitlines()
    promises = [line for line in lines if line.startswith("|") and not line.startswith(("| promise", "|---"))]
    assert [line for line in promises if "::test_" not in line] == []

"""docs/findings/ says what the checks' docstrings say, and every code has a page with its arithmetic and its source."""

from pathlib import Path

import pytest

from luthier.plan.check import CHECKS
from luthier.plan.check.case import Check
from luthier.plan.check.reference import CHAPTERS, code_of, pages

FOLDER = Path(__file__).parents[2] / "docs" / "findings"


def test_the_pages_are_up_to_date() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    assert written == pages(), "run: make docs"


def test_every_code_has_a_page_and_stands_in_one_chapter() -> None:
    codes = [code_of(check) for check in CHECKS]
    assert len(set(codes)) == len(codes) > 30
    assert sorted(code_of(check) for checks in CHAPTERS.values() for check in checks) == sorted(codes)
    assert {f"{code}.md" for code in codes} <= pages().keys()


@pytest.mark.parametrize("check", CHECKS, ids=code_of)
def test_a_page_gives_severity_arithmetic_advice_and_source(check: Check) -> None:
    page = pages()[f"{code_of(check)}.md"]
    assert [page.count(f"**{lead}.**") for lead in ("Severity", "Arithmetic", "What to do", "Source")] == [1, 1, 1, 1]

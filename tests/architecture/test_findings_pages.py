"""docs/findings/ says what the docstrings of checks and rules say, and every code has a page with its arithmetic and its source."""

from pathlib import Path

import pytest

from luthier.core.pages import Finder, code_of, page
from luthier.plan.check import CHECKS
from luthier.plan.check import reference as of_plans
from luthier.watch.rules import RULES
from luthier.watch.rules import reference as of_runs

FOLDER = Path(__file__).parents[2] / "docs" / "findings"


@pytest.mark.parametrize(("folder", "pages"), [(FOLDER, of_plans.pages()), (FOLDER / "run", of_runs.pages())], ids=["plan", "run"])
def test_the_pages_are_up_to_date(folder: Path, pages: dict[str, str]) -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    assert written == pages, "run: make docs"


def test_every_code_has_a_page_and_stands_in_one_chapter() -> None:
    codes = [code_of(finder) for finder in (*CHECKS, *RULES)]
    assert len(set(codes)) == len(codes) > 45
    chapters = [*of_plans.CHAPTERS.values(), *of_runs.CHAPTERS.values()]
    assert sorted(code_of(finder) for finders in chapters for finder in finders) == sorted(codes)
    assert {f"{code}.md" for code in codes} <= of_plans.pages().keys() | of_runs.pages().keys()


@pytest.mark.parametrize("finder", [*CHECKS, *RULES], ids=code_of)
def test_a_page_gives_severity_arithmetic_advice_and_source(finder: Finder) -> None:
    assert [page(finder).count(f"**{lead}.**") for lead in ("Severity", "Arithmetic", "What to do", "Source")] == [1, 1, 1, 1]

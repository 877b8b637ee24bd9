"""docs/guide/trouble.md says what checks and table say."""

from pathlib import Path

from luthier.watch.failures import table
from luthier.watch.health import AREAS
from luthier.watch.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "trouble.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make docs"


def test_every_check_and_every_failure_stands_on_the_page() -> None:
    codes = [check.__name__.replace("_", "-") for area in AREAS for check in area.checks]
    assert len(set(codes)) == len(codes) > 25
    assert [code for code in codes if f"| {code} |" not in page()] == []
    assert [known.code for known in table() if f"### {known.code}\n" not in page()] == []

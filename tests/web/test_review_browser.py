"""A review in a real browser, by keys alone: rated, taken back, gone on with after the server was ended; dark, narrow.

Screenshots lie in pytest's temporary folder (`--basetemp`), for a person's eye.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from luthier.review.store import Ratings
from luthier.runs.store import RunFolder
from tests.review.rows import RUBRIC, answered, run_with
from tests.web.chromium import in_browser, link_of, opened
from tests.web.workshop import runs_in

pytestmark = in_browser
LONG = "The knight is pinned, so it must not move. " * 12


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    tuned = answered([f"Castle {number}. {LONG}" for number in range(4)])
    with runs_in(tmp_path):
        yield run_with(
            tmp_path, tuned, answered([f"Resign {number}." for number in range(4)]), f"review: {{rubric: {json.dumps(RUBRIC)}}}\n"
        )


def reviewing(run: RunFolder) -> AbstractContextManager[str]:
    """What `luthier review` prints."""
    return link_of(run.path.parent, "review", run.name)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with opened() as found:
        yield found


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def at(page: Page, row: int) -> None:
    """Wait until the page shows this row and hears keys."""
    expect(page.locator("nav")).to_contain_text(f"row {row} of 4")
    page.wait_for_load_state()


def preferred(page: Page, side: str) -> str:
    """Whose answer stands there, as only its text tells."""
    return "tuned" if "Castle" in page.locator(f"#answer-{side}").inner_text() else "base"


def test_rows_are_rated_taken_back_and_gone_on_with_by_keys_alone(browser: Browser, run: RunFolder) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    ratings = Ratings(run.ratings)

    with reviewing(run) as link:
        page.goto(link)
        assert "token" not in page.url
        page.keyboard.type("Ann B.")
        press(page, "Enter")
        at(page, 1)
        better = preferred(page, "a")
        press(page, "a", "4", "2", "5", "1", "c")
        page.keyboard.type("because a5")  # keys are letters here
        press(page, "Escape", "Enter")
        at(page, 2)
        (first,) = ratings.standing()
        assert (first.reviewer, first.preferred, first.comment, first.flagged) == ("Ann B.", better, "because a5", False)
        other = "base" if better == "tuned" else "tuned"
        assert first.scores == {better: {"helpful": 4, "true": 5}, other: {"helpful": 2, "true": 1}}

        press(page, "Enter")
        expect(page.locator("#told")).to_contain_text("say which answer is better")
        wrong.clear()  # the browser's own line about status 409
        press(page, "b", "t", "Enter")  # the last choice holds
        at(page, 3)
        press(page, "f", "Enter")
        at(page, 4)
        press(page, "u")
        at(page, 3)
        press(page, "p")
        at(page, 2)
        expect(page.locator("[name=preferred][value=tie]")).to_be_checked()

    press(page, "a", "Enter")
    expect(page.locator("#told")).to_contain_text("does not answer")
    assert [rating.preferred for rating in ratings.standing()] == [better, "tie"]
    wrong.clear()

    with reviewing(run) as link:
        page.goto(link)
        page.get_by_role("link", name="Ann B.").press("Enter")
        at(page, 3)
        press(page, "a", "Enter")
        at(page, 4)
        press(page, "b", "Enter")
        expect(page.locator("h1")).to_contain_text("4 of 4 rows are rated")
        page.wait_for_load_state()
        press(page, "u")
        at(page, 4)
    assert len(ratings.standing()) == 3
    assert wrong == [] and {url.split("/")[2].partition(":")[0] for url in asked} == {"127.0.0.1"}


def test_pages_are_read_in_the_dark_and_on_a_telephone(browser: Browser, run: RunFolder, tmp_path: Path) -> None:
    with reviewing(run) as link:
        for scheme, width in (("light", 1200), ("dark", 1200), ("light", 340)):
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(link)
            here = page.url
            for name in ("", "rows?reviewer=ann", "done?reviewer=ann"):
                page.goto(here + name)
                page.screenshot(path=tmp_path / f"{name.partition('?')[0] or 'who'}-{scheme}-{width}.png", full_page=True)
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 26)"
            assert dark == (scheme == "dark")
            context.close()

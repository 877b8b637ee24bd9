"""The page in a real browser, over a real run: opened by its link, alive while the run goes on, compared, stopped; dark, narrow, by keys.

Screenshots lie in pytest's temporary folder (`--basetemp`), for a person's eye.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from luthier import flow
from luthier.demo import RECIPE
from tests.web.chromium import in_browser, link_of, opened
from tests.web.workshop import recipe_in, runs_in, trained

pytestmark = in_browser
SECONDS = 60_000
"""Milliseconds: how long a busy machine may take for a step of the demo."""


def launched() -> None:
    """The run that goes on, begun or gone on with."""
    flow.launch(flow.load(RECIPE, ("name=live", "training.epochs=400", "checkpoints.eval_steps=50000", "checkpoints.save_steps=50000")))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Two runs that are finished, and one that goes on for as long as anybody looks."""
    with runs_in(tmp_path) as runs:
        recipe = recipe_in(tmp_path)
        trained(recipe)
        trained(recipe, "name=faster", "training.learning_rate=1e-3")
        launched()
        yield runs
        if flow.status("live").state == "running":
            flow.stop("live", now=True)


@pytest.fixture
def link(root: Path) -> Iterator[str]:
    """What `luthier ui` prints."""
    with link_of(root, "ui") as found:
        yield found


@pytest.fixture
def browser() -> Iterator[Browser]:
    with opened() as found:
        yield found


def looked(page: Page, name: str, folder: Path) -> None:
    """A screenshot of all of the page, which is no wider than its window."""
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name


def step(page: Page) -> int:
    return int(page.locator("#standing dd").first.inner_text().split()[0].replace(",", ""))


def moved_on(page: Page, than: int) -> int:
    """The step, once it is a later one; the page is not loaded again for it."""
    end = time.monotonic() + SECONDS / 1000
    while (found := step(page)) <= than:
        assert time.monotonic() < end, found
        page.wait_for_timeout(100)
    return found


def hide(page: Page, whether: bool) -> None:
    """Another tab comes before the page, or it comes to the front again."""
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        whether,
    )


def test_a_run_is_opened_watched_compared_and_stopped(browser: Browser, link: str, tmp_path: Path) -> None:
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    page.set_default_timeout(SECONDS)
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())

    page.goto(link)
    assert "token" not in page.url
    page.keyboard.press("/")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("LIV")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody .running")).to_be_visible(timeout=SECONDS)
    looked(page, "list", tmp_path)

    page.get_by_role("link", name="live", exact=True).click()
    expect(page.locator("figure canvas")).to_have_count(6, timeout=SECONDS)
    before = moved_on(page, 3)
    curve = page.locator("canvas").first.evaluate("canvas => canvas.toDataURL()")
    moved_on(page, before + 2)
    page.wait_for_timeout(200)
    assert page.locator("canvas").first.evaluate("canvas => canvas.toDataURL()") != curve
    looked(page, "live", tmp_path)

    address, tabs = page.url, [page]
    for _ in range(6):  # the browser has six connections to the server, and a tab that is hidden holds none
        hide(tabs[-1], True)
        tabs.append(page.context.new_page())
        tabs[-1].goto(address, timeout=20_000)
        expect(tabs[-1].locator("figure canvas")).to_have_count(6, timeout=20_000)
    before = step(page)
    moved_on(tabs[-1], before + 2)
    assert step(page) == before
    hide(page, False)
    moved_on(page, before + 2)
    for tab in tabs[1:]:
        tab.close()

    page.get_by_role("button", name="save now").click()
    expect(page.locator("#told")).to_contain_text("saved after step", timeout=SECONDS)
    page.get_by_role("button", name="save and stop").click()
    expect(page.locator("#told")).to_contain_text("stopped: saved after step", timeout=SECONDS)
    expect(page.locator("#standing .stopped")).to_be_visible(timeout=SECONDS)
    expect(page.locator("#events")).to_contain_text("interrupted")
    expect(page.locator("#looked-at")).to_contain_text(f"{step(page):,} done")
    looked(page, "stopped", tmp_path)
    assert flow.status("live").state == "stopped"
    buttons = page.locator("[data-act] button")
    expect(buttons).to_have_count(0)
    launched()
    expect(buttons).to_have_count(2, timeout=SECONDS)
    moved_on(page, step(page))
    flow.stop("live", now=True)
    expect(page.locator("#standing .killed")).to_be_visible(timeout=SECONDS)
    expect(buttons).to_have_count(0)

    page.get_by_role("link", name="Luthier").click()
    for name in ("animals", "faster"):
        page.get_by_label(f"compare {name}").check()
    page.get_by_role("button", name="compare those chosen").click()
    expect(page.locator("figure canvas")).to_have_count(3)
    expect(page.locator("main")).to_contain_text("training.learning_rate")
    looked(page, "compare", tmp_path)

    assert {url.split("/")[2] for url in asked} == {link.split("/")[2]}
    assert wrong == []
    page.goto(link.partition("?")[0] + "runs/live")  # whose stream is open when the server is ended


def test_pages_are_read_in_the_dark_on_a_telephone_and_by_keys(browser: Browser, link: str, tmp_path: Path) -> None:
    for scheme, width in (("light", 1200), ("dark", 1200), ("light", 340)):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(link)
        here = page.url
        for name in ("", "runs/animals", "runs/animals/rows", "runs/animals/answers", "compare?run=animals&run=faster"):
            page.goto(here + name)
            if "rows" not in name and "answers" not in name and name:
                expect(page.locator("figure canvas").first).to_be_visible(timeout=SECONDS)
            looked(page, f"{name.replace('/', '-').partition('?')[0] or 'list'}-{scheme}-{width}", tmp_path)
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 26)"
        assert dark == (scheme == "dark")
        page.goto(here)
        for _ in range(2):
            page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        context.close()

"""A run whose answers are rewarded, in a real browser: its charts come with its first steps, the held-out reward with its interval."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from luthier.runs.store import RunFolder
from tests.runs.recorded import held_out, line, planned, rewarded, run_in
from tests.web.chromium import in_browser, link_of, opened

pytestmark = in_browser
SECONDS = 20_000
"""Milliseconds."""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Begun, and nothing measured yet."""
    run = run_in(tmp_path / "runs" / "tickets")
    planned(run, 100)
    return run


@pytest.fixture
def browser() -> Iterator[Browser]:
    with opened() as found:
        yield found


def test_charts_of_answers_come_with_the_first_steps_and_grow_with_their_held_out_reward(
    browser: Browser, run: RunFolder, tmp_path: Path
) -> None:
    with link_of(tmp_path / "runs", "ui") as link:
        page = browser.new_page()
        wrong = list[str]()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(link)
        page.get_by_role("link", name="tickets").click()
        figures = page.locator(".charts figure")
        expect(figures).to_have_count(6, timeout=SECONDS)
        held_out(run, 0, 0.25)
        reward = figures.filter(has=page.locator("figcaption", has_text="Reward"))
        expect(reward).to_be_visible(timeout=SECONDS)
        for step in range(1, 11):
            run.metric(rewarded(step, step / 20))
        expect(figures).to_have_count(11, timeout=SECONDS)  # all but divergence, which is not measured
        expect(reward.locator(".u-legend .u-label")).to_have_text(["step", "train", "validation", "from", "to"])

        def drawn() -> str:
            return str(reward.locator("canvas").evaluate("canvas => canvas.toDataURL()"))

        def grows(before: str) -> None:
            end = time.monotonic() + SECONDS / 1000
            while drawn() == before:
                assert time.monotonic() < end
                page.wait_for_timeout(100)

        before = drawn()
        run.metric(rewarded(11, 1.0))
        grows(before)
        before = drawn()
        run.metric(line(11, 1.5, "validation"))
        held_out(run, 11, 0.75)
        grows(before)
        expect(page.locator("#standing")).to_contain_text("held out", timeout=SECONDS)
        page.screenshot(path=tmp_path / "rewards.png", full_page=True)
        assert not wrong

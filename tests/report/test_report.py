"""report.html: a run in one file, for somebody who has nothing else of it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from luthier import flow
from luthier.cli.main import app
from luthier.report.curves import CHARTS, Drawn, svg
from luthier.watch.series import Points
from tests.runs.recorded import line, recorded, run_in
from tests.web.workshop import SCRIPT, recipe_in, runs_in, trained


class Asking(HTMLParser):
    """What a browser would run, or fetch from somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag] if tag in ("script", "link", "img", "iframe", "form") else []
        self.found += [name for name, _ in attrs if name in ("src", "href", "style") or name.startswith("on")]


def test_it_shows_all_of_a_run_and_asks_for_nothing(tmp_path: Path) -> None:
    with runs_in(tmp_path):
        run = trained(recipe_in(tmp_path))
        found = CliRunner().invoke(app, ["report", "animals"])
        assert (found.exit_code, found.output.strip()) == (0, str(run.path / "report.html"))
    text = (run.path / "report.html").read_text()
    for told in (
        "not enough data",
        "answers.exact",
        "60 done",
        "40 rows read",
        "Gradient norm",
        "max_steps: 60",
        "chat template",
        "planned",
    ):
        assert told in text, told
    asking = Asking()
    asking.feed(text)
    assert asking.found == [] and "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<polyline") == len(CHARTS) + 1


def test_it_shows_a_run_that_has_only_begun(tmp_path: Path) -> None:
    with runs_in(tmp_path) as runs:
        run = run_in(runs / "animals")
        text = flow.report("animals").read_text()
        assert "nothing is recorded yet" in text and "neither plan nor step is recorded yet" in text and "not decided yet" in text
        run.plan.write_text('{"steps": {"total": 9}}')  # without most of what a plan has
        recorded(run, [line(1, None), line(2, 2.0)])
        run.recipe.write_text("name: [")
        text = flow.report("animals").read_text()
    assert "not shown: recipe.yaml, plan.json" in text and "2 done" in text


def test_html_in_a_run_is_text_and_secrets_are_hidden(tmp_path: Path) -> None:
    with runs_in(tmp_path) as runs:
        run = run_in(runs / "animals")
        run.event("note", said=SCRIPT)
        run.verdict.write_text('{"decision": "iterate", "reasons": ["<b>hf_' + "a1" * 12 + '</b>"]}')
        text = flow.report("animals").read_text()
    assert SCRIPT not in text and "&lt;b&gt;[redacted]&lt;/b&gt;" in text


def test_a_secret_is_hidden_whatever_html_makes_of_its_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", 'ab&cd"12345<xyz')
    with runs_in(tmp_path) as runs:
        run = run_in(runs / "animals")
        run.verdict.write_text(json.dumps({"decision": "iterate", "reasons": ['with ab&cd"12345<xyz']}))
        text = flow.report("animals").read_text()
    assert "with [redacted]" in text and "12345" not in text


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [0.0, 0.0], [-1e-9, 2e9], [1e-30, 2e-30], [1.5e-3], [0.0, 3e-4]])
def test_a_curve_lies_within_its_chart_whatever_its_numbers_are(values: list[float]) -> None:
    points = Points(x=np.arange(1.0, len(values) + 1), y=np.array(values))
    drawing = svg(Drawn(chart=CHARTS[0], curves={"train": points}))
    pairs = [tuple(map(float, pair.split(","))) for pair in re.findall(r"[\d.-]+,[\d.-]+", re.findall(r'points="([^"]*)"', drawing)[0])]
    assert len(pairs) == len(values)
    assert all(0 <= x <= 520 and 0 <= y <= 190 for x, y in pairs)
    assert 2 <= drawing.count('class="left"') <= 8


def test_events_that_a_stranger_wrote_are_shown_as_far_as_they_make_sense(tmp_path: Path) -> None:
    with runs_in(tmp_path) as runs:
        run = run_in(runs / "animals")
        lines = (
            '{"event": "far", "time": 1e300}',
            '{"event": {"no": "name"}, "time": Infinity}',
            '{"time": "noon", "said": [1]}',
            "no JSON",
        )
        run.events.write_text("".join(line + "\n" for line in lines))
        text = flow.report("animals").read_text()
    assert "far" in text and "name" in text

"""A judge beside people: on the rows that both judged, how far they agree."""

from dataclasses import replace
from pathlib import Path

import pytest

from luthier import flow
from luthier.evaluate.report import Preference
from luthier.flow.judging import beside_people
from luthier.runs.store import RunFolder
from tests.flow.test_reviewing import BASE, MORE, TUNED, rated
from tests.review.rows import run_with


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    return run_with(tmp_path, TUNED, BASE, MORE)


def test_a_judge_that_prefers_every_tuned_answer_agrees_with_people_where_they_do(run: RunFolder) -> None:
    ((task, rows),) = TUNED.predictions.items()
    judged = replace(TUNED, preferences={task: tuple(Preference(row=row.row, key=row.key, value=1.0, verdicts=("A", "B")) for row in rows)})
    assert beside_people(run, judged) == ()  # nobody was asked
    rated(8, "Ada", "Bo")  # who prefer the base's on every fourth
    (finding,) = beside_people(run, judged)
    assert finding.evidence == {"rows": 8, "same": 6} and "6 of 8 rows" in finding.message and "alpha is" in finding.message
    assert beside_people(run, TUNED) == ()
    assert flow.reviewed("games").reviewers == {"Ada": 8, "Bo": 8}

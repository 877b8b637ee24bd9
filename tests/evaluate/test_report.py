"""scores.json and predictions.jsonl: what is written is read back, what is torn is not believed."""

import json
import math
from pathlib import Path

import pytest

from luthier.core.errors import RunError, UsageError
from luthier.evaluate.metrics import FIXED, measurements
from luthier.evaluate.report import read
from tests.evaluate.reports import report, right

EVALUATION = report(right(30, 31), seconds=[10.0, 11.0, 12.0], memory=9_000_000_000, loss=0.7)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    EVALUATION.write(tmp_path / "test")
    assert read(tmp_path / "test") == read(tmp_path / "test" / "scores.json") == EVALUATION


def test_scores_json_has_the_keys_others_rely_on(tmp_path: Path) -> None:
    EVALUATION.write(tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    task = scores["tasks"]["answers"]
    assert (task["metric"], task["n"]) == ("exact", 31)
    assert (task["value"], task["low"], task["high"]) == pytest.approx((0.968, 0.833, 0.999), abs=1e-3)
    assert scores["latency"]["answer"]["mean"]["high"] is None  # three answers: the upper end is open


def test_without_predictions_there_are_still_scores(tmp_path: Path) -> None:
    EVALUATION.write(tmp_path)
    (tmp_path / "predictions.jsonl").unlink()
    kept = read(tmp_path / "scores.json")
    assert kept.scores == EVALUATION.scores and not kept.predictions


def test_torn_predictions_are_an_error(tmp_path: Path) -> None:
    EVALUATION.write(tmp_path)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "predictions.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    with pytest.raises(RunError, match="30 predictions"):
        read(tmp_path)


def test_no_evaluation_and_one_of_another_version_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no evaluation"):
        read(tmp_path)
    (tmp_path / "scores.json").write_text('{"subject": "x", "accuracy": 1}')
    with pytest.raises(RunError, match="this version"):
        read(tmp_path)


def test_a_loss_that_is_not_a_number_is_read_back_as_such(tmp_path: Path) -> None:
    report([], loss=math.nan).write(tmp_path)
    loss = read(tmp_path).scores.loss
    assert loss is not None and math.isnan(loss.value)


def test_every_metric_has_one_flat_name() -> None:
    names = {"answers.exact", "answers.cut", "answers.endless", "answers.refused", *FIXED}
    assert set(measurements(EVALUATION)) == names
    assert measurements(EVALUATION)["first_token_p50"].value == 1.1
    assert measurements(EVALUATION)["per_token_mean"].value == pytest.approx(1.1)  # (11 − 1.1) / 9 on average

"""Runs beside each other: what differs in their recipes, and what of their scores is more than noise."""

import functools
import json
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from luthier import flow
from luthier.cli.main import app
from luthier.core.errors import UsageError
from luthier.evaluate.comparison import difference
from luthier.evaluate.metrics import Measurement, measurements
from luthier.evaluate.report import Report
from luthier.report.compare import Compared, apart
from luthier.runs.store import RunFolder
from luthier.score.sequence import Level
from tests.evaluate.reports import lost, report, right
from tests.web.workshop import recipe_in, runs_in, trained


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    with runs_in(folder) as root:
        recipe = recipe_in(folder)
        for name, *changed in (("small",), ("large", "lora.r=64"), ("other", "lora.r=4", "training.learning_rate=0.001")):
            trained(recipe, f"name={name}", *changed)
    return root


@pytest.fixture(autouse=True)
def there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(root))


def compared(root: Path, **reports: Report) -> Compared:
    for name, each in reports.items():
        each.write(RunFolder(root / name).evaluation("tuned"))
    return flow.compare(list(reports))


def test_keys_that_differ_are_told_with_each_runs_value(root: Path) -> None:
    found = {each.key: each.values for each in flow.compare(["small", "large", "other"]).recipes}
    assert found == {"lora.r": ("16", "64", "4"), "training.learning_rate": ("0.0003", "0.0003", "0.001")}


def test_a_difference_row_by_row_is_real_and_one_as_large_on_other_rows_is_noise(root: Path) -> None:
    """20 rows won and none lost of 100 is shown; 20 more right where 40 were won and 20 lost is not, among as many comparisons."""
    base = right(60, 100)
    won = right(80, 100)
    mixed = [1.0] * 40 + [0.0] * 20 + [1.0] * 28 + [0.0] * 12
    found = compared(root, small=report(base), large=report(won), other=report(mixed))
    (metric,) = [each for each in found.metrics if each.name == "answers.exact"]
    assert {name: (against.real, against.difference.pairs) for name, against in metric.against.items()} == {
        "large": (True, 100),
        "other": (False, 100),
    }
    assert metric.told("small") == "60.0 % (49.7 % … 69.7 %)"
    assert metric.told_against("large").startswith("+20.0 points (+1") and metric.told_against("large").endswith(", better")
    assert metric.told_against("other").endswith(", noise")


def test_a_loss_is_better_where_it_is_lower(root: Path) -> None:
    draw = Random(1)
    nats = [draw.uniform(5, 30) for _ in range(80)]
    found = compared(root, small=lost(nats), large=lost([value - draw.uniform(0, 2) for value in nats]))
    (metric,) = [each for each in found.metrics if each.name == "validation_loss"]
    assert (metric.against["large"].real, metric.against["large"].better) == (True, True)


def test_times_and_memory_of_different_hours_are_shown_and_not_compared(root: Path) -> None:
    found = compared(root, small=report(right(5, 9), seconds=[1.0] * 9, memory=10**9), large=report(right(5, 9), seconds=[9.0] * 9))
    shown = {metric.name: set(metric.against) for metric in found.metrics}
    assert shown["latency_mean"] == shown["peak_memory"] == set() and shown["answers.exact"] == {"large"}


def drawn(draw: Random, rows: int) -> Measurement:
    return measurements(report([float(draw.random() < 0.6) for _ in range(rows)]))["answers.exact"]


def test_of_twenty_runs_that_are_alike_hardly_any_is_called_better() -> None:
    """Holm over all of them: any is called real in at most 5 % of comparisons where nothing differs; looked at one by one, in most."""
    draw, wrong, wrong_alone = Random(7), 0, 0
    for _ in range(40):
        first, *others = (drawn(draw, 60) for _ in range(21))
        asked = {place: functools.partial(difference, other, first) for place, other in enumerate(others)}
        wrong += bool(apart(asked, Level()))
        wrong_alone += any(apart({0: each}, Level()) for each in asked.values())
    assert wrong <= 4 < 10 < wrong_alone


def test_the_command_prints_tables_and_one_json_object(root: Path) -> None:
    compared(root, small=report(right(60, 100)), large=report(right(80, 100)))
    shown = CliRunner().invoke(app, ["compare", "small", "large"]).output
    assert "lora.r" in shown and "+20.0 points" in shown and "training" in shown
    found = json.loads(CliRunner().invoke(app, ["compare", "small", "large", "--json"]).stdout)
    assert found["runs"] == ["small", "large"] and found["recipes"] == {"lora.r": ["16", "64"]}
    assert found["metrics"]["answers.exact"]["large"]["difference"]["real"] is True
    assert found["costs"][0]["seconds"] > 0


def test_a_run_that_was_not_asked_is_named_and_one_alone_is_refused(root: Path) -> None:
    (root / "other" / "evaluations" / "tuned" / "scores.json").unlink()
    assert flow.compare(["small", "other"]).unevaluated == ("other",)
    with pytest.raises(UsageError, match="two runs or more"):
        flow.compare(["small", "small"])

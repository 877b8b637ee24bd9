"""The real classification task, cut short: recipes/debian-sections.yaml from rows to scores; skipped where the rows are absent."""

import json
from pathlib import Path

import pytest

from luthier import flow
from luthier.recipe.load import LoadedRecipe
from luthier.runs.store import RunFolder

RECIPE = Path(__file__).parents[1] / "recipes" / "debian-sections.yaml"
ROWS = RECIPE.parents[2] / "shared" / "data" / "debian-packages" / "packages.jsonl"

pytestmark = pytest.mark.skipif(not ROWS.exists(), reason=f"no rows at {ROWS}")


@pytest.fixture(scope="module", autouse=True)
def _runs_in(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_RUNS", str(tmp_path_factory.mktemp("debian") / "runs"))
        yield


@pytest.fixture(scope="module")
def loaded() -> LoadedRecipe:
    return flow.load(
        RECIPE, ["training.max_steps=60", "checkpoints.eval_steps=20", "checkpoints.save_steps=20", "evaluation.tasks.0.limit=100"]
    )


def test_packages_of_one_source_stand_on_one_side(loaded: LoadedRecipe) -> None:
    prepared = flow.prepare(loaded.recipe)
    sides: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        for example in prepared.stream_examples(split):
            sides.setdefault(example.key, set()).add(split)
    assert len(sides) > 1_000
    assert [key for key, found in sides.items() if len(found) > 1] == []


def test_every_package_is_kept_or_counted(loaded: LoadedRecipe) -> None:
    rows = flow.prepare(loaded.recipe).summary.rows
    assert rows.read == 5_564 == rows.kept + sum(rows.dropped.values())


@pytest.mark.slow
def test_sixty_steps_learn_something_that_evaluation_sees(loaded: LoadedRecipe) -> None:
    run: RunFolder = flow.train(loaded).run
    losses = [record["loss"] for record in map(json.loads, run.metrics.read_text().splitlines()) if record["kind"] == "validation"]
    assert len(losses) == 3 and losses[-1] < losses[0]
    scores = flow.evaluate(run.name).report.scores
    assert scores.tasks["section"].n == 100
    assert scores.tasks["section"].value > 0.1  # ten sections; the untuned base names none

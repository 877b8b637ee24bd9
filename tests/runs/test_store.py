"""Run folders: the same recipe comes back to its folder, another one gets its own."""

from pathlib import Path

import pytest

from luthier.core.errors import UsageError
from luthier.runs import store


@pytest.fixture(autouse=True)
def _runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a  # as written\n")
    return path


def test_the_same_recipe_comes_back_to_its_folder(original: Path) -> None:
    first = store.open_or_create("a", "name: a\n", original)
    assert store.open_or_create("a", "name: a\n", original) == first
    assert (first.path / "recipe.original").read_text() == "name: a  # as written\n"


def test_another_recipe_gets_the_next_number(original: Path) -> None:
    store.open_or_create("a", "seed: 1\n", original)
    assert store.open_or_create("a", "seed: 2\n", original).name == "a-2"
    assert store.open_or_create("a", "seed: 3\n", original).name == "a-3"
    assert store.open_or_create("a", "seed: 2\n", original).name == "a-2"


def test_an_unknown_run_is_told_with_those_that_exist(original: Path) -> None:
    store.open_or_create("known", "seed: 1\n", original)
    with pytest.raises(UsageError, match=r"(?s)no run called 'other'.*known"):
        store.find("other")


def test_a_run_is_finished_when_its_events_say_so(original: Path) -> None:
    run = store.open_or_create("a", "seed: 1\n", original)
    assert not run.finished
    run.event("started")
    assert not run.finished
    run.event("finished", step=3)
    assert run.finished

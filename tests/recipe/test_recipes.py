"""The recipes in `recipes/` can be taken as they are: they load, and with their tiny file they run here in a few steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.data.read import files_of
from luthier.plan.hardware import device_of
from luthier.recipe.load import LoadedRecipe, load
from luthier.recipe.schema import Recipe
from luthier.runs.store import RunFolder
from tests.test_flow_ranks import ended, luthier, wait_for

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted((*FOLDER.glob("*.yaml"), *FOLDER.glob("*.toml")))
SEEDS = [
    *("chess-coach-4b.yaml", "chess-coach-35b.yaml", "crafter-30b.toml", "nothing-gpt-3b.yaml"),
    *("qwen3-guide-0.6b.yaml", "qwen3-guide-1.7b.yaml", "cpu-coder-7b.yaml"),
]
"""Recipes out of users' notes, whose rows they have and we have not."""
TINY_ITSELF = "quickstart.yaml"
WITH_TINY = [recipe for recipe in RECIPES if recipe.name != TINY_ITSELF]
TWO_MINUTES = 120
MIXTURES: dict[str, list[str]] = {"crafter-30b": [], "chess-coach-35b": ["--family", "qwen3_5_moe_text"]}
"""Recipes for mixtures of experts, and how a tiny one is made."""

recipes = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
recipes_with_tiny = pytest.mark.parametrize("recipe", WITH_TINY, ids=lambda recipe: recipe.name)


def tiny_of(recipe: Path) -> Path:
    return FOLDER / "tiny" / f"{recipe.stem}.yaml"


def tiny(recipe: Path) -> LoadedRecipe:
    return load(recipe, [f"@{tiny_of(recipe)}"])


def mixture_of(recipe: Path, place: Path) -> list[str]:
    """The override that gives a mixture's recipe a tiny mixture, made in `place`."""
    if recipe.stem not in MIXTURES:
        return []
    folder = place / f"{recipe.stem}-base"
    subprocess.run([sys.executable, "-m", "luthier.demo.mixture", str(folder), *MIXTURES[recipe.stem]], check=True, timeout=TWO_MINUTES)
    return [f"model.base={folder}"]


def values(recipe: Recipe) -> dict[str, object]:
    """Dotted key → value, down to lists and texts."""

    def below(value: object, key: str) -> dict[str, object]:
        if not isinstance(value, dict):
            return {key: value}
        return {name: leaf for inner in value for name, leaf in below(value[inner], f"{key}.{inner}".lstrip(".")).items()}

    return below(recipe.model_dump(exclude_none=True), "")


def test_all_of_the_designs_recipes_are_there() -> None:
    assert {*SEEDS, "debian-sections.yaml", "quickstart-rl.yaml", TINY_ITSELF} <= {recipe.name for recipe in RECIPES}


@recipes
def test_a_recipe_loads_and_its_rows_are_there_or_named(recipe: Path) -> None:
    for source in load(recipe).recipe.data.sources:
        if recipe.name == TINY_ITSELF:
            assert all(file.is_file() for file in files_of(source))
        elif not Path(source.path).exists():
            with pytest.raises(DataError, match=Path(source.path).name):
                files_of(source)


@pytest.mark.parametrize("name", SEEDS)
def test_a_seeds_recipe_keeps_its_rows_beside_itself_and_names_a_device_that_is_known(name: str) -> None:
    recipe = load(FOLDER / name).recipe
    assert all(Path(source.path).is_relative_to(FOLDER / "data") for source in recipe.data.sources)
    if recipe.launch.gpu != "here":
        _, number = device_of(recipe.launch.gpu)
        data = recipe.parallel.data if recipe.parallel.data != "auto" else 1
        assert number == data * recipe.parallel.tensor * recipe.parallel.pipeline


@recipes_with_tiny
def test_a_tiny_file_brings_base_and_rows_and_names_the_run_apart(recipe: Path) -> None:
    loaded = tiny(recipe).recipe
    assert loaded.name == f"{recipe.stem}-tiny"
    assert loaded.model.base == "demo"
    assert all(file.is_file() for source in loaded.data.sources for file in files_of(source))
    assert loaded.training.max_steps in range(4, 11)


@recipes_with_tiny
def test_a_tiny_file_leaves_the_way_it_is_computed_as_it_is(recipe: Path) -> None:
    seeds, loaded = load(recipe).recipe, tiny(recipe).recipe
    assert (loaded.model.quantization, loaded.training.optimizer) == (seeds.model.quantization, seeds.training.optimizer)
    assert loaded.parallel == seeds.parallel or "guide" in recipe.stem  # whose notes have one GPU, or eight


@recipes_with_tiny
def test_a_tiny_file_says_only_what_changes(recipe: Path) -> None:
    before, after = values(load(recipe).recipe), tiny(recipe)
    said = {key for key, place in after.provenance.items() if place.startswith("tiny/") and not key.startswith("data.sources")}
    assert len(said) >= 3
    assert {key for key in said if key in before and values(after.recipe)[key] == before[key]} == set()


@pytest.mark.slow
@recipes_with_tiny
def test_a_recipe_with_its_tiny_file_trains_to_the_end(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.getbasetemp() / "recipes"  # one for all: the same rows are prepared once
    environment = os.environ | {"LUTHIER_RUNS": str(place / "runs")}
    command = [sys.executable, "-m", "luthier.cli.main", "train", str(recipe), f"@{tiny_of(recipe)}", *mixture_of(recipe, place)]
    command += ["--force", "more-ranks-than-devices"]  # four of them may have two cores
    ended = subprocess.run(
        command, env=environment, cwd=tmp_path_factory.getbasetemp(), capture_output=True, text=True, timeout=TWO_MINUTES
    )
    assert ended.returncode == 0, ended.stderr
    assert (place / "runs" / f"{recipe.stem}-tiny" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_rented_run_in_nf4_goes_on_where_it_was_preempted_and_answers_in_the_same_bits(tmp_path: Path) -> None:
    recipe = FOLDER / "nothing-gpt-3b.yaml"
    longer = ["training.max_steps=24", "checkpoints.save_steps=4", "checkpoints.eval_steps=12", "evaluation.tasks=[{name: answers}]"]
    command = ["train", str(recipe), f"@{tiny_of(recipe)}", *longer]
    whole, broken = (RunFolder(tmp_path / "runs" / name) for name in ("whole", "broken"))
    done = luthier(tmp_path, *command, "name=whole")
    _, err = ended(done)
    assert done.returncode == 0, err
    preempted = luthier(tmp_path, *command, "name=broken")
    wait_for(broken.metrics, 6)
    preempted.kill()
    ended(preempted)
    assert not broken.finished
    again = luthier(tmp_path, *command, "name=broken")
    _, err = ended(again)
    assert again.returncode == 0, err
    assert "resum" in err
    weights = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in (whole, broken)]
    assert weights[0] == weights[1]
    asked = luthier(tmp_path, "evaluate", "broken", "--limit", "4", "--json")
    out, err = ended(asked)
    assert asked.returncode == 0, err
    assert [task["n"] for task in json.loads(out)["tasks"].values()] == [4]
    provenance = json.loads((broken.adapter / "provenance.json").read_text())
    assert (provenance["quantization"], provenance["double_quant"]) == ("nf4", True)

"""A loaded recipe: its paths do not depend on where one stands, and every value says where it comes from."""

import subprocess
import sys
from pathlib import Path

import pytest

from luthier import demo
from luthier.core.errors import RecipeError
from luthier.recipe.base import base_location
from luthier.recipe.load import load
from tests.recipe.recipes import LEAST, loaded

PATHS = """\
name: coach
model: {base: ./models/tiny, chat_template: chat.jinja}
lora: {init_from: ../first}
data:
  sources: [{path: data/*.jsonl}, {path: /abs/rows.jsonl}]
  split: {train: 1, validation: val.jsonl, test: test.jsonl}
evaluation:
  baseline: scores.json
  tasks: [{name: answers, scorer: "mine:score"}]
"""


def test_relative_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "scores.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "r.yaml").write_text(PATHS)
    recipe = load(Path("recipes/r.yaml")).recipe
    assert recipe.model.base == f"{tmp_path}/recipes/models/tiny"
    assert recipe.model.chat_template == f"{tmp_path}/recipes/chat.jinja"
    assert recipe.lora != "none" and recipe.lora.init_from == f"{tmp_path}/first"
    assert [source.path for source in recipe.data.sources] == [f"{tmp_path}/recipes/data/*.jsonl", "/abs/rows.jsonl"]
    assert (recipe.data.split.validation, recipe.data.split.test) == (f"{tmp_path}/recipes/val.jsonl", f"{tmp_path}/recipes/test.jsonl")
    assert recipe.evaluation.baseline == f"{tmp_path}/recipes/scores.json"
    assert recipe.evaluation.tasks[0].scorer == "mine:score"


def test_an_overrides_path_is_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = loaded(tmp_path / "recipes", LEAST, "data.sources.0.path=x.jsonl", "model.base=../recipes").recipe
    assert recipe.data.sources[0].path == f"{tmp_path}/here/x.jsonl"
    assert recipe.model.base == f"{tmp_path}/recipes"


def test_names_of_the_hub_of_runs_and_of_the_demo_stay_names(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert loaded(tmp_path).recipe.model.base == "demo"
    recipe = loaded(tmp_path, LEAST, "model.base=Qwen/Qwen3-0.6B", "lora.init_from=first", "evaluation.baseline=first").recipe
    assert (recipe.model.base, recipe.evaluation.baseline) == ("Qwen/Qwen3-0.6B", "first")
    assert recipe.lora != "none" and recipe.lora.init_from == "first"
    assert recipe.model.chat_template == "auto"


def test_a_folder_beside_the_recipe_is_the_base_rather_than_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    text = LEAST.replace("demo", "Qwen/Qwen3-0.6B")
    assert loaded(tmp_path, text).recipe.model.base == f"{tmp_path}/Qwen/Qwen3-0.6B"


def test_the_resolved_recipe_loads_to_the_same_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text("{}")
    first = loaded(tmp_path, PATHS)
    (tmp_path / "elsewhere").mkdir()
    assert loaded(tmp_path / "elsewhere", first.text).text == first.text


def test_every_value_says_where_it_comes_from(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, LEAST + "training: {max_steps: 9}\nlora: {target_modules: [q_proj]}\n", "lora.r=4", "training.epochs=1")
    origins = recipe.provenance
    assert (origins["name"], origins["model.base"], origins["data.sources.0.path"]) == ("recipe.yaml:1", "recipe.yaml:2", "recipe.yaml:5")
    assert (origins["lora.target_modules"], origins["lora.r"], origins["lora.alpha"]) == ("recipe.yaml:7", "override", "default")
    assert (origins["training.epochs"], origins["training.warmup_ratio"]) == ("override", "default")
    assert "training.max_steps" not in origins
    assert recipe.source == tmp_path / "recipe.yaml"


def test_the_provenance_covers_the_resolved_text(tmp_path: Path) -> None:
    first = loaded(tmp_path, PATHS)
    again = loaded(tmp_path, first.text, name="resolved.yaml")
    assert set(again.provenance) == set(first.provenance)
    values = {key: place for key, place in again.provenance.items() if not place.startswith("resolved.yaml:")}
    assert values == {}


def test_a_base_is_the_shipped_folder_a_folder_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert base_location("demo") == str(demo.BASE)
    assert base_location("tiny") == str(tmp_path / "tiny")
    assert base_location("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    with pytest.raises(RecipeError, match=r"no folder \./missing"):
        base_location("./missing")


def test_loading_takes_less_than_a_quarter_second_beyond_pydantic_and_no_torch(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(LEAST)
    program = (
        "import sys, time, pydantic; start = time.process_time(); from pathlib import Path; from luthier.recipe.load import load; "
        "load(Path(sys.argv[1]), ['lora.r=8']); print(time.process_time() - start); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "recipe.yaml")]
    printed = [subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout.split() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in printed) < 0.25
    assert printed[0][1] == "False"


def test_paths_in_a_linked_recipe_are_relative_to_the_file_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "recipe.yaml").write_text(LEAST)
    (tmp_path / "link.yaml").symlink_to("package/recipe.yaml")
    assert load(tmp_path / "link.yaml").recipe.data.sources[0].path == f"{tmp_path}/package/rows.jsonl"

"""`@FILE` lays another file's values over the recipe: what a recipe needs to run elsewhere stands in one file."""

from pathlib import Path

import pytest

from tests.recipe.recipes import LEAST, loaded, refusal

RECIPE = """\
name: coach
model: {base: Qwen/Qwen3-4B, chat_template: chat.jinja}
data:
  sources:
    - path: rows.jsonl
      where: {source: textbook}
  system_prompts: {coder: Code., tester: Test.}
training: {epochs: 3, warmup_steps: 50, learning_rate: 1e-4}
"""
TINY = """\
model: {base: demo}
data:
  sources:
    - path: ../demo/*.jsonl
  system_prompts: {tester: Test it.}
training:
  max_steps: 4
  warmup_ratio: 0.5
"""


def layer(folder: Path, text: str = TINY, name: str = "tiny.yaml") -> str:
    """The override that lays a file with this text over a recipe beside whose folder it is written."""
    path = folder / "tiny" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return f"@{path}"


def test_mappings_are_joined_and_lists_and_scalars_replaced(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, RECIPE, layer(tmp_path)).recipe
    assert recipe.model.base == "demo"
    assert [source.where for source in recipe.data.sources] == [{}]
    assert recipe.data.system_prompts == {"coder": "Code.", "tester": "Test it."}
    assert recipe.training.learning_rate == 1e-4


def test_its_paths_are_relative_to_itself_and_the_recipes_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    override = layer(tmp_path)
    monkeypatch.chdir(tmp_path / "tiny")
    recipe = loaded(tmp_path, RECIPE, override).recipe
    assert recipe.data.sources[0].path == f"{tmp_path}/demo/*.jsonl"
    assert recipe.model.chat_template == f"{tmp_path}/chat.jinja"


def test_one_of_a_pair_takes_the_recipes_other_away(tmp_path: Path) -> None:
    training = loaded(tmp_path, RECIPE, layer(tmp_path)).recipe.training
    assert (training.max_steps, training.epochs, training.warmup_ratio, training.warmup_steps) == (4, None, 0.5, None)


def test_every_value_names_the_file_and_line_it_is_from(tmp_path: Path) -> None:
    origins = loaded(tmp_path, RECIPE, layer(tmp_path), "lora.r=4").provenance
    assert origins["model.base"] == "tiny/tiny.yaml:1"
    assert origins["data.sources.0.path"] == "tiny/tiny.yaml:4"
    assert origins["data.system_prompts.tester"] == "tiny/tiny.yaml:5"
    assert origins["training.max_steps"] == "tiny/tiny.yaml:7"
    assert origins["model.chat_template"] == "recipe.yaml:2"
    assert origins["data.system_prompts.coder"] == "recipe.yaml:7"
    assert origins["training.learning_rate"] == "recipe.yaml:8"
    assert (origins["lora.r"], origins["lora.alpha"]) == ("override", "default")


def test_the_later_override_of_a_value_holds(tmp_path: Path) -> None:
    tiny = layer(tmp_path, "seed: 7\n")
    assert loaded(tmp_path, LEAST, "seed=1", tiny).recipe.seed == 7
    assert loaded(tmp_path, LEAST, tiny, "seed=1").recipe.seed == 1
    assert loaded(tmp_path, LEAST, layer(tmp_path, "training: {max_steps: 4}\n"), "training.epochs=2").recipe.training.epochs == 2


def test_toml_lies_over_yaml(tmp_path: Path) -> None:
    override = layer(tmp_path, 'model.base = "demo"\n[[data.sources]]\npath = "x.jsonl"\n', name="tiny.toml")
    recipe = loaded(tmp_path, RECIPE, override)
    assert recipe.recipe.data.sources[0].path == f"{tmp_path}/tiny/x.jsonl"
    assert recipe.provenance["data.sources.0.path"] == "tiny/tiny.toml:3"


def test_lora_none_is_replaced_by_a_section_and_a_section_by_none(tmp_path: Path) -> None:
    assert loaded(tmp_path, LEAST + "lora: {r: 4}\n", layer(tmp_path, "lora: none\n")).recipe.lora == "none"
    lora = loaded(tmp_path, LEAST + "lora: none\n", layer(tmp_path, "lora: {r: 8}\n")).recipe.lora
    assert lora != "none" and lora.r == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora: {rr: 8}\n", "tiny/tiny.yaml:1: lora.rr: unknown key `rr`\n  did you mean `lora.r`?"),
        ("training: {epochs: 1, max_steps: 5}\n", "tiny/tiny.yaml:1: training.max_steps: `training.epochs` and `training.max_steps` both"),
        ("lora: [r\n", "tiny/tiny.yaml:2: not YAML"),
        ("", "tiny/tiny.yaml: is empty"),
    ],
)
def test_what_is_wrong_in_it_is_named_with_its_own_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    assert refusal(tmp_path, LEAST, layer(tmp_path, text)).startswith(said)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, LEAST, f"@{tmp_path}/none.yaml").startswith("none.yaml: cannot be read: No such file")

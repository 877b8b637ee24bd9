"""Reading TOML: the same recipe as in YAML, with the line of each key."""

from pathlib import Path

import pytest

from tests.recipe.recipes import LEAST, loaded, refusal

TOML = '''\
# the coach
name = "coach"
model.base = "demo"

[[data.sources]]
path = "/rows.jsonl"
[data.sources.where]
success = true

[[data.sources]]
path = "/more.jsonl"
columns = {text = ["summary", "description"], label = "section"}

[data]
group_by = "agent"
system_prompts = """
[not.a.table]
group_by = "neither"
"""
max_length = 512  # ] no list

[lora]
target_modules = [
  "q_proj",  # ]
  "]",
]
use_dora = true

[evaluation.baseline."answers.exact"]
value = 0.5
'''


def test_toml_says_the_same_as_yaml(tmp_path: Path) -> None:
    toml = 'name = "coach"\nmodel = {base = "demo"}\n[[data.sources]]\npath = "rows.jsonl"\n'
    assert loaded(tmp_path, toml, name="recipe.toml").text == loaded(tmp_path, LEAST).text


def test_every_key_has_its_line_past_lists_of_tables_and_values_of_many_lines(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, TOML, name="recipe.toml")
    lines = {key: int(place.partition(":")[2]) for key, place in recipe.provenance.items() if place.startswith("recipe.toml:")}
    assert lines == {
        "name": 2,
        "model.base": 3,
        "data.sources.0.path": 6,
        "data.sources.0.where.success": 8,
        "data.sources.1.path": 11,
        "data.sources.1.columns.text": 12,
        "data.sources.1.columns.label": 12,
        "data.group_by": 15,
        "data.system_prompts": 16,
        "data.max_length": 20,
        "lora.target_modules": 23,
        "lora.use_dora": 27,
        "evaluation.baseline.answers.exact.value": 30,
    }


def test_an_unknown_key_in_a_list_of_tables_is_named_with_its_line(tmp_path: Path) -> None:
    said = refusal(tmp_path, TOML.replace('path = "/more.jsonl"', 'path = "/more.jsonl"\nfromat = "auto"'), name="recipe.toml")
    assert said == "recipe.toml:12: data.sources.1.fromat: unknown key `fromat`\n  did you mean `data.sources.format`?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "recipe.toml: is empty"),
        ('name = "a"\nmodel = \n', "recipe.toml:2: not TOML: Invalid value"),
        ('name = "a"\nname = "b"\n', "recipe.toml:2: not TOML: Cannot overwrite a value"),
        ('name = "a"\nmodel.revision = 2024-01-01\n', "recipe.toml:2: model.revision: a date or time\n  write it in quotes"),
        ("a = " + "[" * 50_000, "recipe.toml: nested deeper than 20 levels"),
        ("a = " + "[" * 50 + "]" * 50, "recipe.toml:1: nested deeper than 20 levels"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    assert refusal(tmp_path, text, name="recipe.toml").startswith(said)

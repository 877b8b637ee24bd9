"""A recipe file is changed where it is to be changed, and nowhere else."""

import difflib
from pathlib import Path

import pytest

from luthier.core.errors import RecipeError
from luthier.core.finding import Change
from luthier.recipe.edit import Edited, apply_changes
from luthier.recipe.load import load
from tests.recipe.recipes import LEAST

RECIPES = Path(__file__).parents[2] / "recipes"
COMMENTED = """\
# what it is for
name: coach   # its folder, too
model:
    base: demo
    dtype: 'float32'

data:
    sources:
    - path: rows.jsonl   # the log
      where: {success: true}
training:
    learning_rate: 1e-4   # too low
    warmup_steps: 50      # of 45
    epochs: 3

# the end
"""


def change(path: str, value: str | int | float | bool) -> Change:
    return Change(path=path, value=value, why="")


def edited(folder: Path, text: str, *changes: Change, name: str = "recipe.yaml") -> Edited:
    (folder / name).write_bytes(text.encode())
    return apply_changes(folder / name, changes)


def differing(before: str, after: str) -> list[str]:
    """Lines that went (-) and came (+)."""
    return [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[:2] in ("- ", "+ ")]


def test_one_value_changes_and_every_other_character_stays(tmp_path: Path) -> None:
    made = edited(tmp_path, COMMENTED, change("training.learning_rate", 3e-4))
    assert differing(COMMENTED, made.text) == [
        "-     learning_rate: 1e-4   # too low",
        "+     learning_rate: 0.0003   # too low",
    ]
    assert made.changes == ("training.learning_rate: 0.0001 → 0.0003",)
    assert (tmp_path / "recipe.yaml").read_text() == COMMENTED


def test_one_of_a_pair_takes_the_others_line_away(tmp_path: Path) -> None:
    made = edited(tmp_path, COMMENTED, change("training.warmup_ratio", 0.05))
    assert differing(COMMENTED, made.text) == ["-     warmup_steps: 50      # of 45", "+     warmup_ratio: 0.05"]
    assert made.changes == ("training.warmup_steps: 50 → absent", "training.warmup_ratio: absent → 0.05")


def test_missing_keys_and_sections_are_made(tmp_path: Path) -> None:
    made = edited(
        tmp_path, COMMENTED, change("model.quantization", "nf4"), change("lora.r", 8), change("data.sources.0.format", "messages")
    )
    assert "    dtype: 'float32'\n    quantization: nf4\n\n" in made.text
    assert made.text.endswith("\nlora:\n    r: 8\n") and "\n# the end\n" in made.text
    assert "      where: {success: true}\n      format: messages\n" in made.text


def test_a_word_gives_way_to_a_section(tmp_path: Path) -> None:
    made = edited(tmp_path, LEAST + "lora: none   # all weights\n", change("lora.r", 8))
    assert made.text.splitlines()[-2:] == ["lora:   # all weights", "  r: 8"]


MIXED = """\
name :  'coach'
model:
      base:   demo     # six columns in

      dtype: float32 # and a blank line before
data:
  sources:
     -  path: "rows.jsonl"
        where:
            success:    true

  split: {train: 0.8,   validation: 0.1,
          test: 0.1}   # over two lines
lora:
   target_modules:   # three columns
   - q_proj

   # the second
   - v_proj

   r: 16
training:
    epochs: 3      # often enough
    # between
    learning_rate: 1e-4
evaluation: {tasks: [{name: answers, max_new_tokens: 64}]}
# the end"""


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ([change("model.base", "demo2")], ["-       base:   demo     # six columns in", "+       base:   demo2     # six columns in"]),
        ([change("model.revision", "v1")], ["+       revision: v1"]),
        ([change("data.sources.0.path", "/a: b")], ['-      -  path: "rows.jsonl"', '+      -  path: "/a: b"']),
        ([change("data.sources.0.format", "messages")], ["+         format: messages"]),
        (
            [change("data.split.test", 0.05), change("data.split.validation", 0.15)],
            [
                *("-   split: {train: 0.8,   validation: 0.1,", "+   split: {train: 0.8,   validation: 0.15,"),
                *("-           test: 0.1}   # over two lines", "+           test: 0.05}   # over two lines"),
            ],
        ),
        ([change("lora.r", 8)], ["-    r: 16", "+    r: 8"]),
        ([change("lora.alpha", 8)], ["+    alpha: 8"]),
        (
            [change("lora.target_modules", "all-linear")],
            [
                *("-    target_modules:   # three columns", "+    target_modules: all-linear   # three columns"),
                *("-    - q_proj", "- ", "-    # the second", "-    - v_proj"),
            ],
        ),
        ([change("training.max_steps", 9)], ["-     epochs: 3      # often enough", "+     max_steps: 9"]),
        (
            [change("evaluation.tasks.0.limit", "all"), change("evaluation.baseline", "base")],
            [
                "- evaluation: {tasks: [{name: answers, max_new_tokens: 64}]}",
                "+ evaluation: {tasks: [{name: answers, max_new_tokens: 64, limit: all}], baseline: base}",
            ],
        ),
        ([change("checkpoints.keep", 2)], ["+ ", "+ checkpoints:", "+       keep: 2"]),
        ([change("seed", 7)], ["+ ", "+ seed: 7"]),
    ],
    ids=lambda given: given[0].path if given and isinstance(given[0], Change) else "",
)
def test_lines_that_are_not_changed_stay_to_the_byte_however_they_are_indented(
    tmp_path: Path, changes: list[Change], differences: list[str]
) -> None:
    assert differing(MIXED, edited(tmp_path, MIXED, *changes).text) == differences


def test_one_of_a_pair_goes_from_a_section_in_one_line_too(tmp_path: Path) -> None:
    text = LEAST + "training: {epochs: 3, global_batch_size: 8}\n"
    assert edited(tmp_path, text, change("training.max_steps", 9)).text.endswith("training: {global_batch_size: 8, max_steps: 9}\n")
    text = LEAST + "training: {global_batch_size: 8, epochs: 3}\n"
    assert edited(tmp_path, text, change("training.max_steps", 9)).text.endswith("training: {global_batch_size: 8, max_steps: 9}\n")
    assert edited(tmp_path, LEAST + "training: {epochs: 3}\n", change("training.max_steps", 9)).text.endswith("training: {max_steps: 9}\n")


TOML = """\
name = "coach"  # its folder, too
model.base = "demo"

[training]
epochs = 3.0    # often enough
learning_rate = 1e-4

[[data.sources]]
path = "rows.jsonl"
where = {success = true}  # the others failed
"""


def test_toml_keeps_its_comments_and_order_too(tmp_path: Path) -> None:
    changes = (change("training.max_steps", 45), change("model.dtype", "bfloat16"), change("data.sources.0.format", "messages"))
    made = edited(tmp_path, TOML, *changes, change("parallel.data", 2), name="recipe.toml")
    assert differing(TOML, made.text) == [
        '+ model.dtype = "bfloat16"',
        "- epochs = 3.0    # often enough",
        "+ max_steps = 45",
        '+ format = "messages"',
        "+ ",
        "+ [parallel]",
        "+ data = 2",
    ]


@pytest.mark.parametrize("recipe", sorted((*RECIPES.glob("*.yaml"), *RECIPES.glob("*.toml"))), ids=lambda recipe: recipe.name)
def test_a_changed_file_loads_to_the_changed_recipe(recipe: Path, tmp_path: Path) -> None:
    changes = {
        "training.learning_rate": 3.5e-4,
        "training.warmup_ratio": 0.05,
        "training.max_steps": 45,
        "checkpoints.save_steps": "10%",
        "lora.target_modules": "all-linear",
        "lora.use_dora": False,
        "model.quantization": "nf4",
        "parallel.data": 2,
        "decision.deploy.peak_memory": "<= 10 GB",
        "data.sources.0.path": "/rows: all.jsonl",
        "data.group_by": "no",
        "seed": 7,
    }
    if "demo-base.jsonl" in recipe.read_text():  # which lies beside the recipe
        changes["evaluation.tasks.1.data"] = "/known.jsonl"
    made = apply_changes(recipe, [change(path, value) for path, value in changes.items()])
    (tmp_path / recipe.name).write_text(made.text)
    assert load(tmp_path / recipe.name).recipe == load(recipe, [f"{path}={value}" for path, value in changes.items()]).recipe
    comments = [line.partition("# ")[2] for line in recipe.read_text().splitlines() if line.startswith("# ")]
    assert comments and all(comment in made.text for comment in comments)


def test_windows_line_ends_stay(tmp_path: Path) -> None:
    text = COMMENTED.replace("\n", "\r\n")
    made = edited(tmp_path, text, change("seed", 7), change("model.dtype", "auto"))
    assert made.text.count("\r\n") == made.text.count("\n") > text.count("\n")


def test_a_change_that_makes_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"did you mean `lora\.r`"):
        edited(tmp_path, COMMENTED, change("lora.rr", 8))
    with pytest.raises(RecipeError, match="expected a whole number > 0"):
        edited(tmp_path, COMMENTED, change("lora.r", 0))


def test_a_value_that_an_anchor_repeats_elsewhere_is_left_to_its_owner(tmp_path: Path) -> None:
    two = "[{name: a, limit: 5}, {name: b, limit: 5}]"
    text = LEAST + "evaluation:\n  tasks:\n    - &first {name: a, limit: 5}\n"
    assert "limit: 9" in edited(tmp_path, text, change("evaluation.tasks.0.limit", 9)).text
    assert "limit: 9" in edited(tmp_path, LEAST + f"evaluation: {{tasks: {two}}}\n", change("evaluation.tasks.1.limit", 9)).text
    columns = "  sources:\n    - path: a\n      columns: &c {text: x, label: y}\n    - path: b\n      columns: *c\n"
    with pytest.raises(RecipeError, match="cannot be changed without changing more"):
        edited(tmp_path, f"name: a\nmodel: {{base: demo}}\ndata:\n{columns}", change("data.sources.0.columns.text", "z"))

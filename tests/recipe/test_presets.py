"""`luthier init` writes a recipe that loads as it stands and says why each value is there."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.plan.advice import DataSize, advise
from luthier.plan.hardware import device_of
from luthier.recipe.load import LoadedRecipe, load
from luthier.recipe.presets import Beginning, spelled, write_recipe
from luthier.recipe.schema import Recipe
from luthier.recipe.section import Scalar

MINE = Beginning(name="mine", base="Qwen/Qwen2.5-7B-Instruct", path="rows.jsonl", gpu="L4", facts=("7.6 G parameters", "238 rows", "L4"))


def written(folder: Path, beginning: Beginning, *values: tuple[str, Scalar, str]) -> LoadedRecipe:
    path = folder / "recipe.yaml"
    path.write_text(write_recipe(beginning, values), encoding="utf-8")
    return load(path)


def test_without_any_advice_it_is_the_least_recipe(tmp_path: Path) -> None:
    recipe = written(tmp_path, Beginning(name="mine", base="demo", path="rows.jsonl")).recipe
    least = {"name": "mine", "model": {"base": "demo"}, "data": {"sources": [{"path": f"{tmp_path}/rows.jsonl"}]}}
    assert recipe == Recipe.model_validate(least)


def test_the_reason_stands_above_its_value(tmp_path: Path) -> None:
    loaded = written(
        tmp_path, MINE, ("lora.r", 8, "more gains little"), ("training.learning_rate", 3.5e-4, "the sweep's"), ("lora.dropout", 0.0, "")
    )
    lines = (tmp_path / "recipe.yaml").read_text().splitlines()
    assert lines[lines.index("  # more gains little") + 1] == "  r: 8"
    assert lines[lines.index("  # the sweep's") + 1] == "  learning_rate: 3.5e-4"
    assert lines[lines.index("  r: 8") + 1] == "  dropout: 0.0"
    assert loaded.recipe.training.learning_rate == 3.5e-4
    assert loaded.recipe.launch.gpu == "L4"


def test_sections_stand_in_the_schemas_order(tmp_path: Path) -> None:
    text = write_recipe(MINE, [("checkpoints.keep", 2, ""), ("lora.r", 8, ""), ("model.quantization", "nf4", "")])
    tops = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith((" ", "#"))]
    assert tops == ["model", "lora", "data", "checkpoints", "launch"]


def test_the_advisors_values_make_a_recipe_in_which_the_disagreement_is_written(tmp_path: Path) -> None:
    device, _ = device_of("L4")
    advice = advise(7_615_616_512, DataSize(rows=238, dialogue=False), device)
    recipe = written(tmp_path, MINE, *((said.path, said.value, said.comment) for said in advice)).recipe
    assert recipe.model.quantization == "nf4"
    assert recipe.lora != "none" and (recipe.lora.r, recipe.lora.alpha) == (32, 32.0)
    assert (recipe.training.epochs, recipe.training.global_batch_size) == (4.0, 8)
    assert recipe.checkpoints.save_steps == 0.1
    text = " ".join(line.lstrip(" #") for line in (tmp_path / "recipe.yaml").read_text().splitlines())
    assert "Written by `luthier init` for 7.6 G parameters, 238 rows, L4." in text
    assert "the Qwen3 field guide says 1e-4, which lies in that range (open sweep" in text


TEXT = st.text(max_size=60)


@given(base=TEXT, path=TEXT, fact=TEXT, why=TEXT, value=TEXT | st.integers() | st.booleans())
@settings(max_examples=80, deadline=None)
def test_whatever_base_path_and_reasons_hold_the_recipe_loads(base: str, path: str, fact: str, why: str, value: Scalar) -> None:
    beginning = Beginning(name="mine", base=base, path=f"/{path}", facts=(fact,))
    said = value if isinstance(value, str) else str(value)
    with TemporaryDirectory() as folder:
        recipe = written(Path(folder), beginning, ("data.system_prompts", said, why)).recipe
    assert recipe.data.system_prompts == said
    assert recipe.model.base == base or Path(recipe.model.base).is_absolute()


@given(st.floats(1e-12, 1e6))
def test_a_number_is_spelled_as_people_write_it_and_reads_back_the_same(number: float) -> None:
    assert float(spelled(number)) == number
    assert spelled(3e-4) == "3e-4" and spelled(0.05) == "0.05" and spelled(1.0) == "1.0"

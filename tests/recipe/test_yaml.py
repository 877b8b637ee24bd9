"""Reading YAML: the core schema of YAML 1.2, lines, and what cannot be a recipe."""

from pathlib import Path

import pytest

from luthier.core.errors import RecipeError
from luthier.recipe.load import load
from luthier.recipe.parse import MOST_BYTES, yaml_scalar
from tests.recipe.recipes import LEAST, loaded, refusal


@pytest.mark.parametrize("text", ["no", "yes", "on", "off", "y", "1_000", "12:30", "2024-01-01", "0b1", "1e", "."])
def test_text_stays_text(text: str) -> None:
    assert yaml_scalar(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3E+2", 300.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("-3", -3),
        ("True", True),
        ("~", None),
    ],
)
def test_numbers_truths_and_null_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert yaml_scalar(text) == value
    assert type(yaml_scalar(text)) is type(value)


def test_a_rate_without_a_point_is_a_number_and_no_is_a_word(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, LEAST + "      where: {answer: no, kept: true}\ntraining: {learning_rate: 1e-4}\n").recipe
    assert recipe.training.learning_rate == 1e-4
    assert recipe.data.sources[0].where == {"answer": "no", "kept": True}


def test_keys_are_text_even_where_they_look_like_numbers(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, LEAST + "  group_by: level\n  system_prompts: {1: Be brief., no: Refuse.}\n").recipe
    assert recipe.data.system_prompts == {"1": "Be brief.", "no": "Refuse."}


def test_an_anchor_can_be_repeated(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, LEAST + "      where: &kept {success: true}\n    - {path: more.jsonl, where: *kept}\n").recipe
    assert recipe.data.sources[1].where == {"success": True}


def test_an_override_of_one_repetition_leaves_the_others(tmp_path: Path) -> None:
    text = LEAST + "      where: &kept {success: true}\n    - {path: more.jsonl, where: *kept}\n"
    recipe = loaded(tmp_path, text, "data.sources.1.where.success=false").recipe
    assert [source.where for source in recipe.data.sources] == [{"success": True}, {"success": False}]


def test_a_typo_in_an_anchor_is_named_at_each_place(tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST.replace("- path: rows.jsonl", "- &rows {path: rows.jsonl, zzz: 1}") + "    - *rows\n")
    assert "recipe.yaml:5: data.sources.0.zzz: unknown key" in said
    assert "recipe.yaml:6: data.sources.1.zzz: unknown key" in said


def test_quotes_and_the_str_tag_make_text_of_a_number(tmp_path: Path) -> None:
    assert loaded(tmp_path, LEAST.replace("coach", "!!str 2024")).recipe.name == "2024"
    assert loaded(tmp_path, LEAST.replace("coach", '"2024"')).recipe.name == "2024"


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert loaded(tmp_path, "\ufeff" + LEAST).recipe.name == "coach"
    assert loaded(tmp_path, '\ufeffname = "a"\nmodel.base = "demo"\ndata.sources = [{path = "/a"}]\n', name="r.toml").recipe.name == "a"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "recipe.yaml: is empty"),
        ("# nothing yet\n", "recipe.yaml: is empty"),
        ("- a\n", "recipe.yaml: holds ['a'], not a mapping"),
        ("name: a\nname: b\n", "recipe.yaml:2: 'name' stands here a second time; the first is on line 1"),
        ('name: a\nmodel: {base: "demo}\n', "recipe.yaml:3: not YAML: found unexpected end of stream"),
        ("model:\n\tbase: demo\n", "recipe.yaml:2: not YAML: found character '\\t' that cannot start any token\n  indent with spaces"),
        ("name: a\n---\nname: b\n", "recipe.yaml:2: a second document begins here; a recipe is one"),
        ("name: a\nseed: !!python/object:os.system x\n", "recipe.yaml:2: a recipe has no tags, but here stands tag:yaml.org,2002:python"),
        ("name: a\n[a, b]: c\n", "recipe.yaml:2: a key is text"),
        ("name: *a\n", "recipe.yaml:1: *a names no anchor before it"),
        ("name: a\nseed: \x07\n", "recipe.yaml:2: character 7 cannot stand in YAML"),
        ('name: "\\ud800"\n', "recipe.yaml: holds text that is not Unicode"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    assert refusal(tmp_path, text).startswith(said)


def test_a_file_that_is_not_text_is_refused_with_the_line_where_that_shows(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"name: a\nmodel: \xff\xfe")
    with pytest.raises(RecipeError, match=r"recipe.yaml:2: not UTF-8 text"):
        load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "bomb",
    [
        "a: " + "[" * 50_000,
        "- " * 50_000,
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)),
        "a: " + "x" * MOST_BYTES,
    ],
)
def test_nesting_aliases_and_size_are_bounded(tmp_path: Path, bomb: str) -> None:
    assert any(words in refusal(tmp_path, bomb) for words in ("nested deeper than 20 levels", "more than 10,000 values", "at most 262,144"))


def test_a_missing_file_a_folder_and_another_suffix_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    for name, said in (("none.yaml", "No such file"), ("folder.yaml", "Is a directory"), ("rows.jsonl", "ends in .yaml, .yml, .toml")):
        with pytest.raises(RecipeError, match=said):
            load(tmp_path / name)

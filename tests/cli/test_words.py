"""Overrides may stand anywhere on the line; what is left is the subject."""

from pathlib import Path

import pytest

from luthier.cli.words import split_words
from luthier.core.errors import UsageError


def test_overrides_stand_before_and_after_the_recipe() -> None:
    words = split_words(["training.epochs=1", "recipe.yaml", "lora.r=8", "data.sources=[{path: a=b.jsonl}]"], "recipe")
    assert words.subject == "recipe.yaml"
    assert words.overrides == ("training.epochs=1", "lora.r=8", "data.sources=[{path: a=b.jsonl}]")


def test_a_file_to_lay_over_the_recipe_is_an_override_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = split_words(["recipes/coach.yaml", "@recipes/tiny/coach.yaml", "lora.r=8"], "recipe")
    assert (words.subject, words.overrides) == ("recipes/coach.yaml", ("@recipes/tiny/coach.yaml", "lora.r=8"))
    monkeypatch.chdir(tmp_path)
    Path("@odd.yaml").touch()
    assert split_words(["@odd.yaml"], "recipe").subject == "@odd.yaml"


def test_a_file_with_an_equals_sign_in_its_name_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r=8.yaml").touch()
    assert split_words(["r=8.yaml"], "recipe").subject == "r=8.yaml"


@pytest.mark.parametrize(
    ("words", "found"), [([], "found none"), (["a.yaml", "b.yaml"], "'a.yaml', 'b.yaml'"), (["lora.r=8"], "found none")]
)
def test_exactly_one_recipe_is_wanted(words: list[str], found: str) -> None:
    with pytest.raises(UsageError, match=found):
        split_words(words, "recipe")

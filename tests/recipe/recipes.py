"""Recipes on disk for the tests beside this file."""

from pathlib import Path

import pytest

from luthier.core.errors import RecipeError
from luthier.recipe.load import LoadedRecipe, load

LEAST = """\
name: coach
model: {base: demo}
data:
  sources:
    - path: rows.jsonl
"""
"""The least that a recipe must say, in five lines."""


def loaded(folder: Path, text: str = LEAST, *overrides: str, name: str = "recipe.yaml") -> LoadedRecipe:
    """The recipe with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load(path, overrides)


def refusal(folder: Path, text: str = LEAST, *overrides: str, name: str = "recipe.yaml") -> str:
    """What is said of a recipe that is refused, its folder left out."""
    with pytest.raises(RecipeError) as refused:
        loaded(folder, text, *overrides, name=name)
    return str(refused.value).replace(f"{folder}/", "")

"""The recipes in `recipes/` can be taken as they are: they load, and their rows are where they say."""

from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.data.read import files_of
from luthier.recipe.load import load
from tests.recipe.recipes import LEAST

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
SHARED = Path(__file__).parents[3] / "shared"
"""Public data beside the repository, which not every checkout has."""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_shipped_recipe_loads_and_its_rows_exist(recipe: Path) -> None:
    for source in load(recipe).recipe.data.sources:
        if Path(source.path).is_relative_to(SHARED) and not Path(source.path).exists():
            with pytest.raises(DataError, match=Path(source.path).name):
                files_of(source)
        else:
            assert all(file.is_file() for file in files_of(source))


def test_paths_in_a_linked_recipe_are_relative_to_the_file_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "recipe.yaml").write_text(LEAST)
    (tmp_path / "link.yaml").symlink_to("package/recipe.yaml")
    assert load(tmp_path / "link.yaml").recipe.data.sources[0].path == f"{tmp_path}/package/rows.jsonl"

"""The folder of runs that the tests of the page look at; nothing in it is changed by them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.web.workshop import browser, recipe_in, runs_in, trained


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("page")
    with runs_in(folder) as runs:
        recipe = recipe_in(folder)
        trained(recipe)
        trained(recipe, "name=faster", "training.learning_rate=1e-3", "lora.r=4")
        yield runs


@pytest.fixture
def page(root: Path) -> TestClient:
    return browser(root)

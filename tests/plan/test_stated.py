"""Rows that are only stated make micro batches like real ones."""

import pytest

from luthier.core.errors import UsageError
from luthier.plan.stated import StatedWorkload
from luthier.recipe.schema import Recipe
from luthier.runs.workload import MicroBatchSize


def recipe(**data: object) -> Recipe:
    return Recipe.model_validate({"name": "stated", "model": {"base": "demo"}, "data": {"sources": [{"path": "rows.jsonl"}], **data}})


def test_rows_and_tokens_are_read_as_they_are_written() -> None:
    stated = StatedWorkload.read(recipe(), "23_439:2640", "1730:2238")
    assert (stated.rows, stated.validation_rows, stated.mean, stated.longest) == (23439, 2640, 1730, 2238)


def test_what_is_left_out_follows_from_the_recipe() -> None:
    stated = StatedWorkload.read(recipe(max_length=1024), "800", "max_length")
    assert (stated.validation_rows, stated.mean, stated.longest) == (100, 1024, 1024)
    by_file = recipe(split={"train": 1, "validation": "held-out.jsonl", "test": 0})
    assert StatedWorkload.read(by_file, "800", "300").validation_rows == 80
    assert StatedWorkload.read(recipe(split={"train": 1, "validation": 0, "test": 0}), "800", "300").validation_rows == 0


def test_a_length_that_nobody_knows_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"(?s)--rows: how long the rows are is not known.*--tokens MEAN:MAX"):
        StatedWorkload.read(recipe(), "800", "max_length")
    with pytest.raises(UsageError, match="cannot have 50 tokens where the mean is 500"):
        StatedWorkload.read(recipe(), "800", "500:50")
    with pytest.raises(UsageError, match=r"rows of 3000 tokens are longer than data\.max_length, 1024"):
        StatedWorkload.read(recipe(max_length=1024), "800", "500:3000")
    with pytest.raises(UsageError, match=r"--tokens 'long' is not a number"):
        StatedWorkload.read(recipe(), "800", "long")


def test_a_step_is_divided_as_training_divides_it_and_the_heaviest_is_of_the_longest_rows() -> None:
    stated = StatedWorkload(rows=100, validation_rows=10, mean=300, longest=900)
    padded = stated.survey(MicroBatchSize(rows=5, tokens=5 * 900), 16)
    assert [extent.rows for extent in padded.steps[0]] == [5, 5, 5, 1]
    assert [(extent.rows, extent.places) for extent in padded.heaviest] == [(5, 4500)]
    packed = stated.survey(MicroBatchSize(rows=16, tokens=1000, packing="bins"), 16)
    assert [extent.rows for extent in packed.steps[0]] == [3, 3, 3, 3, 3, 1]
    assert packed.heaviest[0].places == 900
    assert packed.mean("tokens") == 16 * 300
    assert sum(extent.rows for extent in packed.validation) == 10

"""When a run stops early, and which weights it keeps."""

import sys

import pytest

from luthier.core.errors import RecipeError
from luthier.plan.ending import resolve_ending
from luthier.recipe.schema import Checkpoints


def test_with_validation_rows_the_best_is_kept_and_patience_is_three() -> None:
    ending = resolve_ending(Checkpoints(), validation_rows=10)
    assert (ending.best, ending.patience) == (True, 3)
    ending = resolve_ending(Checkpoints(), validation_rows=0)
    assert (ending.best, ending.patience) == (False, sys.maxsize)
    ending = resolve_ending(Checkpoints(final="last", early_stopping_patience="off"), validation_rows=10)
    assert (ending.best, ending.patience) == (False, sys.maxsize)


@pytest.mark.parametrize(("key", "value"), [("final", "best"), ("early_stopping_patience", 2), ("best_by", "answers.exact")])
def test_a_wish_for_the_best_without_validation_rows_is_refused(key: str, value: object) -> None:
    with pytest.raises(RecipeError, match=rf"checkpoints\.{key}.*no validation rows"):
        resolve_ending(Checkpoints.model_validate({key: value}), validation_rows=0)

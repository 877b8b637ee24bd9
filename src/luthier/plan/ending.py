"""When a run stops early, and which of its weights it keeps."""

import sys
from dataclasses import dataclass

from luthier.core.errors import RecipeError
from luthier.plan.setup import SAID, Resolved
from luthier.recipe.schema import Checkpoints

PATIENCE = 3
"""Validations without a new best, where the recipe leaves it to `auto`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """When to stop early and which weights to keep."""

    patience: int
    """Validations without a new best; more than there can be where early stopping is off."""
    best: bool
    """The best checkpoint becomes the adapter, not the last."""
    resolved: tuple[Resolved, ...]


def resolve_ending(checkpoints: Checkpoints, validation_rows: int) -> Ending:
    """Patience and final checkpoint; raises RecipeError where the recipe wants a best and has no validation rows."""
    if not validation_rows:
        wishes = {
            "checkpoints.final": checkpoints.final == "best",
            "checkpoints.best_by": checkpoints.best_by not in ("auto", "loss"),
            "checkpoints.early_stopping_patience": isinstance(checkpoints.early_stopping_patience, int),
        }
        for path in (path for path, wished in wishes.items() if wished):
            raise RecipeError("there are no validation rows to judge by", where=path, change="set data.split.validation, or remove the key")
    patience = checkpoints.early_stopping_patience
    number = patience if patience != "auto" else PATIENCE if validation_rows else "off"
    best = checkpoints.final == "best" or (checkpoints.final == "auto" and validation_rows > 0)
    has_rows = f"{validation_rows or 'no'} validation rows"
    return Ending(
        patience=sys.maxsize if number == "off" else int(number),
        best=best,
        resolved=(
            Resolved(path="checkpoints.early_stopping_patience", value=number, why=has_rows if patience == "auto" else SAID),
            Resolved(path="checkpoints.final", value="best" if best else "last", why=has_rows if checkpoints.final == "auto" else SAID),
        ),
    )

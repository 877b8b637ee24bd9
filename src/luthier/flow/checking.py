"""The verb check: numerical self-tests on a recipe's own rows and on layers like its model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.progress import Progress
from luthier.flow.planning import SILENT, config_of, prepared_of

if TYPE_CHECKING:
    from luthier.check.outcome import Outcome
    from luthier.recipe.schema import Recipe


def check(recipe: Recipe, progress: Progress = SILENT) -> list[Outcome]:
    """What would make this recipe train something else than it says, each with what was compared. Takes less than a minute."""
    from luthier.check.run import check as run_checks

    return run_checks(recipe, config_of(recipe.model), prepared_of(recipe, progress), progress)

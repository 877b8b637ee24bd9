"""All self-tests of one recipe."""

from collections.abc import Mapping
from typing import Any

from luthier.check.learning import by_heart
from luthier.check.numbers import numeric_checks
from luthier.check.outcome import Outcome
from luthier.check.tokens import CHECKS, case_of
from luthier.core.progress import Progress
from luthier.data.store import Prepared
from luthier.data.tokenizer import load_tokenizer
from luthier.recipe.schema import Recipe


def check(recipe: Recipe, config: Mapping[str, Any], prepared: Prepared, progress: Progress) -> list[Outcome]:
    """What is found in the prepared rows, and in training on them; `config` is the base's config.json."""
    tokenizer = load_tokenizer(recipe.model)
    case = case_of(tokenizer, recipe.data, prepared)
    found = []
    with progress.task("checks", len(CHECKS) + 2) as advance:
        for number, each in enumerate(CHECKS, 1):
            found.append(each(case))
            advance(number, each.__name__.replace("_", " "))
        found += numeric_checks(recipe, config, prepared.rows("train"))
        advance(len(CHECKS) + 1, "gradients")
        found.append(by_heart(case, recipe, config))
        advance(len(CHECKS) + 2, "four rows by heart")
    return found

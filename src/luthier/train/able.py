"""What a recipe may say and a plan may count with, but training cannot do yet."""

from collections.abc import Iterator

from luthier.core.errors import PlanRefused
from luthier.recipe.schema import Recipe


def refuse_what_cannot_be_trained(recipe: Recipe) -> None:
    """Raise PlanRefused with every value that training does not know yet, and what it takes instead."""
    wanted = list(_unknown(recipe))
    if wanted:
        what = "training cannot do this yet: " + ", ".join(f"{path}: {value}" for path, value, _ in wanted)
        raise PlanRefused(what, change="set " + ", ".join(f"{path}={instead}" for path, _, instead in wanted))


def _unknown(recipe: Recipe) -> Iterator[tuple[str, object, object]]:
    values: tuple[tuple[str, object, object], ...] = (
        ("model.quantization", recipe.model.quantization, "none"),
        ("training.optimizer", recipe.training.optimizer, "adamw"),
        ("launch.gpu", recipe.launch.gpu, "here"),
    )
    return ((path, value, instead) for path, value, instead in values if value != instead)

"""What a recipe may say and a plan may count with, but training cannot do here."""

from importlib.util import find_spec

from luthier.core.errors import PlanRefused
from luthier.recipe.schema import Recipe
from luthier.watch.trackers import refuse_absent

BITSANDBYTES = {"nf4", "fp4", "adamw_8bit", "paged_adamw_8bit"}
"""Values that its kernels compute; int8 is plain arithmetic."""


def refuse_what_cannot_be_trained(recipe: Recipe) -> None:
    """Raise PlanRefused with every value that wants a library that is not here, and what to take instead."""
    refuse_absent(recipe.tracking)
    values = (("model.quantization", recipe.model.quantization, "int8"), ("training.optimizer", recipe.training.optimizer, "adamw"))
    wanted = [each for each in values if each[1] in BITSANDBYTES]
    if wanted and find_spec("bitsandbytes") is None:
        what = f"{' and '.join(f'{path}: {value}' for path, value, _ in wanted)} want bitsandbytes, which is not installed"
        instead = ", ".join(f"{path}={other}" for path, _, other in wanted)
        raise PlanRefused(what, change=f"install it: pip install -c constraints.txt 'luthier[quant]'; or set {instead}")

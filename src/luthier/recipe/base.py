"""Where a recipe's base model lies: shipped with Luthier, in a folder, or on the hub."""

from pathlib import Path

from luthier.core.errors import RecipeError

DEMO = "demo"
"""The name of the tiny base that the package carries."""


def base_name(base: str) -> str:
    """What a model without adapters is asked by: its hub id, `demo`, or its folder's name."""
    folder = Path(base).expanduser()
    return folder.absolute().name if folder.is_dir() else base


def base_location(base: str) -> str:
    """What transformers can load: the shipped folder for `demo`, an existing folder's absolute path, else the hub id unchanged.

    Raises RecipeError for what is written as a path (`./x`, `/models/x`) and is no folder, which the hub would only call a bad id.
    """
    if base == DEMO:
        return str(Path(__file__).parents[1] / "demo" / "base")
    folder = Path(base).expanduser()
    if folder.is_dir():
        return str(folder.absolute())
    if base.startswith(("/", "./", "../", "~")):
        raise RecipeError(f"no folder {base}", where="model.base", change="name a folder, a hub id such as Qwen/Qwen3-0.6B, or `demo`")
    return base

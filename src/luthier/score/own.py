"""A user's own code: `module:name` of an importable module or one in the current folder, and who is named where it fails."""

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

from luthier.core.errors import RecipeError


def load(name: str, kind: str, wanted: str) -> Callable[..., Any]:
    """What `module:name` is, of a `kind` (scorer, reward) that is `wanted` so; raises RecipeError where it cannot be had.

    Importing runs the module.
    """
    module_name, _, own_name = name.partition(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:  # `os:rename` would be called with an answer and a reference
        raise RecipeError(f"{kind} {name!r} is Python's own {module_name}", change=f"name {wanted}, which was written for it")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that it hides no installed module
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the module, which may raise anything
        change = f"put {module_name.replace('.', '/')}.py into the current folder, or install it"
        raise RecipeError(f"{kind} {name!r}: {type(error).__name__}: {error}", change=change) from error
    found: Callable[..., Any] | None = vars(module).get(own_name)
    if not callable(found):
        raise RecipeError(f"{kind} {name!r}: {module_name} has no {own_name!r} that can be called", change=f"name {wanted}")
    return found


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Whatever is raised inside it becomes a RecipeError that names `what`."""
    try:
        yield
    except Exception as error:
        raise RecipeError(f"{what} raised {type(error).__name__}: {error}", change="mend it for this row") from error


def number(value: Any) -> float:
    """A number as a float; NaN where it is none."""
    return float(value) if isinstance(value, Real) else math.nan

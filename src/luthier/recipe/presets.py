"""A first recipe: the values that fit a model, its data and a device, each under the reason for it."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from luthier.recipe.load import written
from luthier.recipe.override import key_of
from luthier.recipe.schema import Recipe
from luthier.recipe.section import Scalar

WIDTH = 120
NEXT = """\
# Ask and judge, once you know the question; without this only losses are compared.
# evaluation:
#   tasks:
#     - {name: answers, split: test, scorer: exact, max_new_tokens: 256}
# decision:
#   deploy: {answers.exact: better than baseline}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What must be known before a recipe can be written."""

    name: str
    base: str
    path: str
    """The rows' file, absolute or relative to the recipe."""
    gpu: str = "here"
    facts: tuple[str, ...] = ()
    """What the values were chosen for: `7.6 G parameters`, `238 rows`, `L4, 24 GB`."""


def write_recipe(beginning: Beginning, values: Sequence[tuple[str, Scalar, str]]) -> str:
    """A YAML recipe with these values, (dotted key, value, reason); it loads as it stands."""
    tree: dict[str, Any] = {
        "name": _Said(beginning.name),
        "model": {"base": _Said(beginning.base)},
        "data": {"sources": _Said([{"path": beginning.path}])},
    }
    if beginning.gpu != "here":
        tree["launch"] = {"gpu": _Said(beginning.gpu)}
    for path, value, why in values:
        *sections, name = map(str, key_of(path))
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = _Said(value, why)
    ordered = {name: tree[name] for name in Recipe.model_fields if name in tree}
    facts = f" for {', '.join(beginning.facts)}" if beginning.facts else ""
    head = f"Written by `luthier init`{facts}. Above each value stands why it fits; `luthier plan` says what the run will take."
    return "\n".join((*_comment(head), *_lines(ordered, 0), "", NEXT))


def spelled(number: float) -> str:
    """A number as people write it: 3.5e-4 rather than 0.00035."""
    if not 0 < abs(number) < 0.01:
        return repr(number)
    return f"{Decimal(repr(number)).normalize():e}"


@dataclass(frozen=True, slots=True)
class _Said:
    """A value and its reason."""

    value: Any
    why: str = ""


def _lines(tree: dict[str, Any], depth: int) -> Iterator[str]:
    for name, said in tree.items():
        if isinstance(said, _Said):
            yield from _comment(said.why)
            yield from _entry(name, said.value)
        else:
            if depth == 0:
                yield ""
            yield f"{name}:"
            yield from (f"  {line}" for line in _lines(said, depth + 1))


def _entry(name: str, value: Any) -> list[str]:
    if isinstance(value, float):
        return [f"{name}: {spelled(value)}"]
    return written({name: value}).splitlines()


def _comment(text: str) -> list[str]:
    """The text in lines of comment; what cannot stand in YAML becomes a blank."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return [f"# {line}" for line in textwrap.wrap(printable, WIDTH)]

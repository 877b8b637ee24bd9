"""`k=v` from the command line, put into a draft as if it stood in the file."""

from typing import Any

from luthier.core.errors import RecipeError
from luthier.recipe import fields
from luthier.recipe.draft import Draft, Key, Origin, dotted, in_override
from luthier.recipe.parse import yaml_scalar, yaml_value
from luthier.recipe.schema import PAIRS


def override(draft: Draft, text: str) -> None:
    """Set what `k=v` says, whether or not the recipe has such a key: the check that follows names the nearest one.

    A value that begins with a bracket or a quote is YAML; any other is a scalar to its last character, so that
    `data.sources.0.path=*.jsonl` and `decision.deploy.answers.exact=>= 0.98` need no quotes but the shell's.
    """
    path, equals, value = text.partition("=")
    path, value = path.strip(), value.strip()
    locate = in_override(text)
    if not equals or not all(path.split(".")):
        raise RecipeError("not of the form key=value", where=locate(0).where, change="write it as lora.r=8")
    key = _key(path)
    origins: dict[Key, Origin] = {}
    parsed: Any = value
    if value[:1] in ("[", "{", '"', "'"):
        parsed = yaml_value(value, key, origins, locate)
    elif value:
        parsed = yaml_scalar(value)
    origin = locate(0)
    draft.values = _with(draft.values, key, parsed, (), origin)
    kept = {other: at for other, at in draft.origins.items() if other[: len(key)] != key}
    made = {key[:n]: origin for n in range(1, len(key) + 1) if key[:n] not in kept}
    draft.origins = kept | made | origins
    for pair in PAIRS:
        if key in pair:
            (other,) = set(pair) - {key}
            if draft.has(other) and not draft.overridden(other):
                draft.remove(other)


def _key(path: str) -> Key:
    """The parts of a dotted path. Under free names (`decision.deploy.answers.exact`) the dots belong to the name."""
    key: Key = ()
    parts = path.split(".")
    place: fields.Place | None = fields.root()
    while parts:
        part: str | int = parts.pop(0)
        if place and place.named:
            field = parts.pop() if parts and parts[-1] in place.named.names else ""
            part = ".".join((str(part), *parts))
            parts = [field] if field else []
        elif place and place.item and str(part).isdecimal():
            part = int(part)
        key = (*key, part)
        place = place.at(part) if place else None
    return key


def _with(section: Any, key: Key, value: Any, done: Key, origin: Origin) -> Any:
    """The section with the value put in; sections on the way that are missing, or are a word such as `lora: none`, are made."""
    if not key:
        return value
    part, rest = key[0], key[1:]
    if isinstance(section, list) and not isinstance(part, int):
        raise RecipeError(f"{dotted(done)} is a list", where=origin.where, change=f"name an item by its number: {dotted((*done, 0))}")
    if isinstance(part, str):
        fields_before = section if isinstance(section, dict) else {}
        return {**fields_before, part: _with(fields_before.get(part), rest, value, (*done, part), origin)}
    items = section if isinstance(section, list) else []
    if part > len(items):
        raise RecipeError(f"{dotted(done)} has no item {part}", where=origin.where, change=f"the next is {dotted((*done, len(items)))}")
    before = items[part] if part < len(items) else None
    return [*items[:part], _with(before, rest, value, (*done, part), origin), *items[part + 1 :]]

"""What the command line changes in a draft: `k=v` as if it stood in the file, `@FILE` as if that file's lines stood over the recipe's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.core.errors import RecipeError
from luthier.recipe import fields
from luthier.recipe.draft import Draft, Key, Origin, dotted, in_override
from luthier.recipe.parse import parse, yaml_scalar, yaml_value
from luthier.recipe.schema import PAIRS


def override(draft: Draft, text: str) -> None:
    """Set what `k=v` or `@FILE` says; the later of two that speak of one value holds."""
    if text.startswith("@"):
        lay_over(draft, parse(Path(text[1:])))
    else:
        set_value(draft, text)


def lay_over(draft: Draft, layer: Draft) -> None:
    """Put another file's values over the draft's: mappings are joined, lists and scalars take the place of what was there."""
    for one, other in (*PAIRS, *(pair[::-1] for pair in PAIRS)):
        if layer.has(one) and not layer.has(other):
            _give_way(draft, other)
    folder = Path(layer.file.parent.name)
    origins = {key: replace(origin, provenance=str(folder / origin.provenance)) for key, origin in layer.origins.items()}
    for key in list(_taken(draft.values, layer.values, ())):
        _put(draft, key, layer.value(key), origins[key], {other: at for other, at in origins.items() if other[: len(key)] == key})


def set_value(draft: Draft, text: str) -> None:
    """Set what `k=v` says, whether or not the recipe has such a key: the check that follows names the nearest one.

    A value that begins with a bracket or a quote is YAML; any other is a scalar to its last character, so that
    `data.sources.0.path=*.jsonl` and `decision.deploy.answers.exact=>= 0.98` need no quotes but the shell's.
    """
    path, equals, value = text.partition("=")
    path, value = path.strip(), value.strip()
    locate = in_override(text)
    if not equals or not all(path.split(".")):
        raise RecipeError("not of the form key=value", where=locate(0).where, change="write it as lora.r=8")
    key = key_of(path)
    origins: dict[Key, Origin] = {}
    parsed: Any = value
    if value[:1] in ("[", "{", '"', "'"):
        parsed = yaml_value(value, key, origins, locate)
    elif value:
        parsed = yaml_scalar(value)
    _put(draft, key, parsed, locate(0), origins)
    for pair in PAIRS:
        if key in pair:
            (other,) = set(pair) - {key}
            _give_way(draft, other)


def key_of(path: str) -> Key:
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
        elif place and place.item and str(part).isdecimal() and len(str(part)) < 10:
            part = int(part)
        key = (*key, part)
        place = place.at(part) if place else None
    return key


def _taken(old: dict[str, Any], new: dict[str, Any], key: Key) -> Iterator[Key]:
    """The keys whose values take a place whole: all but mappings that are laid over mappings."""
    for name, inner in new.items():
        beneath = old.get(name)
        if isinstance(inner, dict) and isinstance(beneath, dict):
            yield from _taken(beneath, inner, (*key, name))
        else:
            yield (*key, name)


def _put(draft: Draft, key: Key, value: Any, origin: Origin, below: dict[Key, Origin]) -> None:
    """Write a value with its origin, and with those of what it holds."""
    draft.values = _with(draft.values, key, value, (), origin)
    kept = {other: at for other, at in draft.origins.items() if other[: len(key)] != key}
    made = {key[:n]: origin for n in range(1, len(key) + 1) if key[:n] not in kept}
    draft.origins = kept | made | below


def _give_way(draft: Draft, other: Key) -> None:
    """Take the other one of a pair out, unless the command line gave it too: that is a contradiction, which the check will name."""
    if draft.has(other) and not draft.overridden(other):
        draft.remove(other)


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

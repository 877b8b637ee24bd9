"""The schema as its users see it: what may stand where, in words. Errors, overrides and the reference all ask here."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

from luthier.recipe.draft import Key
from luthier.recipe.schema import Recipe

WORDS = {"string": "text", "integer": "whole number", "number": "number"}


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the recipe and what may stand there, read from the schema's JSON Schema."""

    name: str
    _node: dict[str, Any]

    @property
    def doc(self) -> str:
        """The field's docstring."""
        return str(self._node.get("description", ""))

    @property
    def section_doc(self) -> str:
        """The docstring of the section's class; empty where no section stands."""
        return next((str(node["description"]) for node in self._nodes() if "properties" in node), "")

    @property
    def required(self) -> bool:
        """Whether the recipe must say it."""
        return "default" not in self._node

    @property
    def default(self) -> Any:
        """What holds where the recipe says nothing."""
        return self._node["default"]

    @property
    def fields(self) -> tuple["Place", ...]:
        """The section's fields in order; empty where no section stands."""
        return tuple(Place(name, field) for node in self._nodes() for name, field in node.get("properties", {}).items())

    @property
    def names(self) -> tuple[str, ...]:
        """The section's field names."""
        return tuple(field.name for field in self.fields)

    @property
    def section(self) -> "Place":
        """The section that stands here, or that each item here is."""
        return next((place for place in (self.item, self.named) if place and place.fields), self)

    @property
    def item(self) -> Self | None:
        """What each item of a list is, where a list may stand here."""
        return self._inner("items")

    @property
    def named(self) -> Self | None:
        """What each value of a mapping with free names is, where one may stand here."""
        return self._inner("additionalProperties")

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that may stand here."""
        return tuple(word for node in self._nodes() for word in (*node.get("enum", ()), *([node["const"]] if "const" in node else [])))

    @property
    def expected(self) -> str:
        """What may stand here, in words: a whole number > 0 or `auto`."""
        *first, last = [spelled for node in self._nodes() for spelled in _spelled(node)]
        return f"{', '.join(first)} or {last}" if first else last

    def at(self, part: str | int) -> "Place | None":
        """The place one key deeper; None where the schema has none."""
        if isinstance(part, int):
            return self.item
        return next((field for field in self.fields if field.name == part), self.named)

    def _inner(self, keyword: str) -> Self | None:
        return next((type(self)("", node[keyword]) for node in self._nodes() if isinstance(node.get(keyword), dict)), None)

    def _nodes(self) -> list[dict[str, Any]]:
        """The alternatives, each with its own keywords; null is how the schema says that a field may be absent."""
        return [_resolved(node) for node in self._node.get("anyOf", [self._node]) if node.get("type") != "null"]


@cache
def root() -> Place:
    """The whole recipe's place."""
    return Place("", _schema())


def at(key: Key) -> Place | None:
    """The place at a key; None where the schema has none."""
    place: Place | None = root()
    for part in key:
        place = place.at(part) if place else None
    return place


def known_keys() -> Iterator[str]:
    """Every key that a recipe can have, dotted; items of a list without their number: `data.sources.path`."""
    yield from _below(root(), "")


def _below(place: Place, prefix: str) -> Iterator[str]:
    for field in place.fields:
        yield prefix + field.name
        yield from _below(field.section, f"{prefix}{field.name}.")


@cache
def _schema() -> dict[str, Any]:
    return Recipe.model_json_schema()


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    return dict(_schema()["$defs"][node["$ref"].rpartition("/")[2]])


def _spelled(node: dict[str, Any]) -> list[str]:
    """One alternative in words; several where it lists several."""
    if "enum" in node or "const" in node:
        return [f"`{word}`" for word in node.get("enum", [node.get("const")])]
    if "properties" in node:
        return ["a section"]
    if node["type"] == "boolean":
        return ["`true`", "`false`"]
    if node["type"] == "array":
        return [f"a list of {_plural(Place('', node['items']))}"]
    if node["type"] == "object":
        return [f"a mapping of names to {_plural(Place('', node['additionalProperties']))}"]
    if "pattern" in node:
        return [f"text like `{node['pattern']}`"]
    bounds = [
        f"{sign} {node[keyword]:g}"
        for keyword, sign in (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
        if keyword in node
    ]
    article = "a " if node["type"] in ("integer", "number") else ""
    return [" ".join(filter(None, (article + WORDS[node["type"]], " and ".join(bounds))))]


def _plural(place: Place) -> str:
    """What a list or mapping holds, without the article."""
    return "sections" if place.fields else place.expected.replace("a whole number", "whole numbers").replace("a number", "numbers")

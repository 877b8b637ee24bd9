"""A YAML text with some of its values changed and every other character as it stood: comments, indentation, quotes, order, blank lines."""

from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from luthier.recipe.draft import Key
from luthier.recipe.load import written

INDENT = 2
"""Columns of a section's keys, in a file that has none."""


def spliced(text: str, key: Key, value: Any) -> str:
    """The text with one value set, in sections made where there are none or where a word such as `lora: none` stands."""
    section, rest = _root(text), list(key)
    while len(rest) > 1 and isinstance(inner := _child(section, rest[0]), MappingNode | SequenceNode):
        section, rest = inner, rest[1:]
    for name in reversed(rest[1:]):
        value = {name: value}
    entry = _entry(section, rest[0])
    return _added(text, section, str(rest[0]), value) if entry is None else _replaced(text, section, entry, value)


def without(text: str, key: Key) -> str:
    """The text without an entry of a section, and without its line; as it stands where there is none."""
    section = _root(text)
    for part in key[:-1]:
        section = _child(section, part)
    entries = section.value if isinstance(section, MappingNode) else []
    place = next((place for place, (name, _) in enumerate(entries) if name.value == key[-1]), None)
    if place is None:
        return text
    name, value = entries[place]
    if not section.flow_style:
        return text[: text.rfind("\n", 0, name.start_mark.index) + 1] + text[_after_line(text, _end(text, value)) :]
    if place:
        return text[: _end(text, entries[place - 1][1])] + text[_end(text, value) :]
    after = entries[1][0].start_mark.index if len(entries) > 1 else _end(text, value)
    return text[: name.start_mark.index] + text[after:]


def _root(text: str) -> Any:
    return YAML(typ="safe", pure=True).compose(text)


def _entry(section: Any, part: str | int) -> tuple[Node | None, Node] | None:
    """A section's name and value, or an item of a list, which has no name."""
    if isinstance(section, SequenceNode):
        return None, section.value[part]
    return next(((name, value) for name, value in section.value if name.value == part), None)


def _child(section: Any, part: str | int) -> Any:
    found = _entry(section, part)
    return found[1] if found else None


def _replaced(text: str, section: Any, entry: tuple[Node | None, Node], value: Any) -> str:
    """The text with an entry's value replaced; what stands behind it on its line stays."""
    name, old = entry
    start, end = old.start_mark.index, _end(text, old)
    if name is None or section.flow_style:
        return text[:start] + _inline(value) + text[end:]
    colon = text.index(":", name.end_mark.index) + 1
    if _is_block(old) or start >= end:  # a list or section in lines of its own, or nothing
        line = _after_line(text, colon)
        rest = text[max(line, _after_line(text, end)) :] if _is_block(old) else text[line:]
        text, start, end = text[:line] + rest, colon, colon
    if not isinstance(value, dict):
        return text[:start] + ("" if start > colon else " ") + _inline(value) + text[end:]
    line = _after_line(text, end)
    lines = _block(value, name.start_mark.column + _indent(text), _indent(text))
    return text[:colon] + text[end:line] + lines + text[line:]


def _added(text: str, section: Any, name: str, value: Any) -> str:
    """The text with a new entry, the last of its section. A section of the file itself stands at the end, a line apart."""
    if section.flow_style:
        between = ", " if section.value else ""
        place = _end(text, section.value[-1][1]) if section.value else section.end_mark.index - 1
        return f"{text[:place]}{between}{_inline(name)}: {_inline(value)}{text[place:]}"
    column = section.start_mark.column
    lines = _block({name: value}, column, _indent(text))
    if not column:
        return text.rstrip("\n") + "\n\n" + lines
    place = _after_line(text, _end(text, section))
    return text[:place] + lines + text[place:]


def _end(text: str, node: Any) -> int:
    """Where what is written of a node ends: a block's own end is where the next thing begins, behind blank lines and comments."""
    if _is_block(node):
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    if isinstance(node, ScalarNode) and node.style in ("|", ">"):
        return len(text[: node.end_mark.index].rstrip())
    return int(node.end_mark.index)


def _is_block(node: Any) -> bool:
    return isinstance(node, MappingNode | SequenceNode) and not node.flow_style


def _after_line(text: str, place: int) -> int:
    """Where the next line begins."""
    end = text.find("\n", place)
    return len(text) if end < 0 else end + 1


def _indent(text: str) -> int:
    """Columns by which a section's keys stand further in."""
    inner = (value for _, value in _root(text).value if isinstance(value, MappingNode) and not value.flow_style)
    return next((int(section.start_mark.column) for section in inner), INDENT)


def _block(values: Mapping[str, Any], column: int, indent: int) -> str:
    """Lines of a section."""
    lines = []
    for name, value in values.items():
        lines.append(f"{' ' * column}{_inline(name)}:" + ("\n" if isinstance(value, dict) else f" {_inline(value)}\n"))
        lines += [_block(value, column + indent, indent)] if isinstance(value, dict) else []
    return "".join(lines)


def _inline(value: Any) -> str:
    """A value as it stands in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_inline(name)}: {_inline(inner)}" for name, inner in value.items()) + "}"
    return written({"x": value}).removeprefix("x: ").rstrip("\n")

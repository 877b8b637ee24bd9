"""Text to values with their lines: YAML by the core schema of YAML 1.2, TOML 1.0."""

import re
import tomllib
from collections.abc import Iterable, Iterator
from copy import deepcopy
from datetime import date, time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionStartEvent, DocumentStartEvent, Event, MappingStartEvent, ScalarEvent
from ruamel.yaml.reader import ReaderError

from luthier.core.errors import RecipeError
from luthier.recipe.draft import Draft, Key, Locate, Origin, dotted, in_file

MOST_BYTES = 256 * 1024
MOST_VALUES = 10_000
"""Aliases count with all that they repeat, so a file that doubles itself thirty times ends here."""
DEEPEST = 20
SUFFIXES = (".yaml", ".yml", ".toml")

NULL = re.compile(r"null|Null|NULL|~|")
TRUE = re.compile(r"true|True|TRUE")
FALSE = re.compile(r"false|False|FALSE")
DECIMAL = re.compile(r"[-+]?[0-9]{1,300}")
OCTAL = re.compile(r"0o[0-7]{1,300}")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]{1,300}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def parse(path: Path) -> Draft:
    """The file's values and lines; raises RecipeError with the line where it cannot be read."""
    if path.suffix not in SUFFIXES:
        raise RecipeError(f"a recipe ends in {', '.join(SUFFIXES)}", where=str(path))
    return parse_text(text_of(path), path)


def parse_text(text: str, path: Path) -> Draft:
    """The values and lines of a text as if it stood in this file, whose suffix says which language it is."""
    draft = Draft(file=path, values={})
    values = _toml(text, draft) if path.suffix == ".toml" else yaml_value(text, (), draft.origins, in_file(path))
    if not isinstance(values, dict) or not values:
        found = "is empty" if not values else f"holds {values!r:.60}, not a mapping"
        raise RecipeError(found, where=str(path), change="a recipe has at least `name`, `model: {base: …}` and `data: {sources: […]}`")
    draft.values = values
    return draft


def yaml_value(text: str, key: Key, origins: dict[Key, Origin], locate: Locate) -> Any:
    """The one document in a YAML text, with the origins of everything in it put under `key`."""
    composer = _Composer(origins, locate)
    try:
        return composer.document(YAML(typ="safe", pure=True).parse(text), key)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = f"not YAML: {error.problem}"
        change = "indent with spaces" if "\\t" in what else ""
    except ReaderError as error:
        line, what, change = text.count("\n", 0, error.position) + 1, f"character {error.character!r} cannot stand in YAML", ""
    except YAMLError as error:
        line, what, change = 1, f"not YAML: {error}", ""
    raise RecipeError(what, where=locate(line).where, change=change)


def yaml_scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema: `no` and `1_000` are text, `1e-4` is a number."""
    if NULL.fullmatch(text):
        return None
    if TRUE.fullmatch(text) or FALSE.fullmatch(text):
        return TRUE.fullmatch(text) is not None
    if DECIMAL.fullmatch(text):
        return int(text)
    if OCTAL.fullmatch(text) or HEXADECIMAL.fullmatch(text):
        return int(text, 0)
    if FLOAT.fullmatch(text):
        return float(text)
    if NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def text_of(path: Path) -> str:
    """The file's text; raises RecipeError for what is not UTF-8, or too long to be a recipe."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"cannot be read: {reason}", where=str(path)) from error
    if len(data) > MOST_BYTES:
        raise RecipeError(f"has {len(data):,} bytes; a recipe has at most {MOST_BYTES:,}", where=str(path), change="is this the data?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError("not UTF-8 text", where=f"{path}:{line}") from error


class _Composer:
    """Values out of ruamel's events. Its own composer would give no lines for scalars, and copy aliases without end."""

    def __init__(self, origins: dict[Key, Origin], locate: Locate) -> None:
        self.origins, self.locate = origins, locate
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.num_values = 0

    def document(self, events: Iterator[Event], key: Key) -> Any:
        """The value of the one document; None where there is none."""
        starts = (event for event in events if isinstance(event, DocumentStartEvent))
        if next(starts, None) is None:
            return None
        value = self._value(next(events), events, key)
        if second := next(starts, None):
            raise self._error(second, "a second document begins here; a recipe is one")
        return value

    def _value(self, event: Any, events: Iterator[Event], key: Key) -> Any:
        if len(key) > DEEPEST:
            raise self._error(event, f"nested deeper than {DEEPEST} levels")
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise self._error(event, f"a recipe has no tags, but here stands {event.tag}")
        before = self.num_values
        self._count(event, 1)
        if isinstance(event, ScalarEvent):
            value = yaml_scalar(event.value) if event.style is None and event.tag is None else event.value
        elif isinstance(event, MappingStartEvent):
            value = self._mapping(events, key)
        else:
            value = self._sequence(events, key)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, self.num_values - before)
        return value

    def _mapping(self, events: Iterator[Event], key: Key) -> dict[str, Any]:
        """Keys are the text that stands there: `1: …` and `"1": …` are one key."""
        value: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for event in events:
            if isinstance(event, AliasEvent | CollectionStartEvent):
                raise self._error(event, "a key is text")
            if not isinstance(event, ScalarEvent):
                break
            name: str = event.value
            if name in value:
                raise self._error(event, f"{name!r} stands here a second time; the first is on line {lines[name]}")
            lines[name] = event.start_mark.line + 1
            self.origins[(*key, name)] = self.locate(lines[name])
            value[name] = self._value(next(events), events, (*key, name))
        return value

    def _sequence(self, events: Iterator[Event], key: Key) -> list[Any]:
        value: list[Any] = []
        for event in events:
            if not isinstance(event, AliasEvent | ScalarEvent | CollectionStartEvent):
                break
            item = (*key, len(value))
            self.origins[item] = self.locate(event.start_mark.line + 1)
            value.append(self._value(event, events, item))
        return value

    def _alias(self, event: AliasEvent) -> Any:
        if event.anchor not in self.anchors:
            raise self._error(event, f"*{event.anchor} names no anchor before it")
        value, size = self.anchors[event.anchor]
        self._count(event, size)
        return deepcopy(value)

    def _count(self, event: Event, size: int) -> None:
        self.num_values += size
        if self.num_values > MOST_VALUES:
            raise self._error(event, f"more than {MOST_VALUES:,} values")

    def _error(self, event: Event, what: str) -> RecipeError:
        return RecipeError(what, where=self.locate(event.start_mark.line + 1).where)


def _toml(text: str, draft: Draft) -> dict[str, Any]:
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise RecipeError(f"nested deeper than {DEEPEST} levels", where=str(draft.file)) from error
    except ValueError as error:  # TOMLDecodeError, or a number of more than 4,300 digits
        what, _, place = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", place)
        number = line[1] if line else text.rstrip().count("\n") + 1
        raise RecipeError(f"not TOML: {what}", where=f"{draft.file}:{number}") from error
    tables: dict[Key, int] = {}
    table: Key = ()
    for line_number, statement in _statements(text):
        parsed = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            table = _table(parsed, tables)
            values_here: Iterable[tuple[Key, Any]] = [(table[:n], None) for n in range(1, len(table) + 1)]
        else:
            values_here = _below(parsed, table)
        _note_lines(values_here, line_number, draft)
    return values


def _note_lines(values: Iterable[tuple[Key, Any]], line: int, draft: Draft) -> None:
    """Put the line down for each of a statement's values that has none yet; refuse what no recipe holds."""
    for key, value in values:
        origin = draft.origins.setdefault(key, in_file(draft.file)(line))
        if len(key) > DEEPEST:
            raise RecipeError(f"nested deeper than {DEEPEST} levels", where=origin.where)
        if isinstance(value, date | time):
            raise RecipeError("a date or time", where=f"{origin.where}: {dotted(key)}", change="write it in quotes, as text")


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """First line and text of each header or assignment in a text that is TOML.

    A statement ends at the first line end up to which it parses; after its first line that needs a closing bracket or quote.
    """
    begun, statement = 0, ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not statement and line.strip()[:1] in ("", "#"):
            continue
        begun = begun if statement else number
        whole = not statement or any(close in line for close in ("]", '"""', "'''"))
        statement += line + "\n"
        if whole and _parses(statement):
            yield begun, statement
            statement = ""


def _parses(statement: str) -> bool:
    try:
        tomllib.loads(statement)
    except ValueError:
        return False
    return True


def _table(header: dict[str, Any], tables: dict[Key, int]) -> Key:
    """The table that `[a.b]` or `[[a.b]]` opens, with the item's number after a list; `tables` counts the lists' items."""
    key: Key = ()
    inner: Any = header
    while inner:
        if isinstance(inner, list):
            tables[key] = tables.get(key, -1) + 1
            return (*key, tables[key])
        (name,) = inner
        key = (*key, name)
        inner = inner[name]
        if isinstance(inner, dict) and key in tables:
            key = (*key, tables[key])
    return key


def _below(value: Any, key: Key) -> Iterator[tuple[Key, Any]]:
    """Every value in a parsed assignment with its key, inline tables and lists too, from the outside in so that depth can be refused."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*key, name), inner
        yield from _below(inner, (*key, name))

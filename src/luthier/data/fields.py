"""Typed looks into a raw row: every miss is a BadRowError that names file, line, field, found, expected and the fix."""

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import DataError
from luthier.data.rows import RawRow

MAX_DEPTH = 64
"""Deepest JSON passed on to chat templates (tools, tool calls); real schemas stay under 20."""

MEND = "mend the row, or leave such rows out, counted: data.on_bad_row: skip"


class BadRowError(DataError):
    """A row that does not fit its format: `where` is file:line, `what` names field, found and expected, `change` the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A value and where it stands, such as `messages[2].content` of `train.jsonl:17`. Null and absent are the same: nothing."""

    origin: str
    path: str
    value: Any

    def bad(self, expected: str, change: str = MEND) -> BadRowError:
        """The error that says what stands here and what should."""
        return BadRowError(f"field `{self.path}`: found {describe(self.value)}, expected {expected}", where=self.origin, change=change)

    def at(self, key: str | int, value: Any) -> "Cell":
        """A part of this value."""
        return Cell(origin=self.origin, path=f"{self.path}[{key}]" if isinstance(key, int) else f"{self.path}.{key}", value=value)

    def get(self, key: str) -> "Cell":
        """The part called `key` of an object."""
        return self.at(key, self.object().get(key))

    def text(self) -> str:
        """The value, which must be text."""
        if not isinstance(self.value, str):
            raise self.bad("text")
        return self.value

    def full_text(self) -> str:
        """The value, which must be text with more than white space."""
        if not self.text().strip():
            raise self.bad("text that is not empty")
        return self.text()

    def text_or_nothing(self) -> str:
        """The value, which must be text; nothing is empty text."""
        return "" if self.value is None else self.text()

    def scalar(self) -> str:
        """Text as it is; numbers and booleans as JSON spells them."""
        if isinstance(self.value, str):
            return self.value
        if isinstance(self.value, bool | int | float):
            return json.dumps(self.value)
        raise self.bad("text, a number or true/false")

    def object(self) -> Mapping[str, Any]:
        """The value, which must be a JSON object."""
        if not isinstance(self.value, Mapping):
            raise self.bad("an object")
        return self.value

    def items(self) -> "list[Cell]":
        """The parts of a list, or of a list written as JSON text (CSV, and Parquet files with tool schemas)."""
        values = parsed(self.value)
        if not isinstance(values, list):
            raise self.bad("a list")
        return [self.at(index, value) for index, value in enumerate(values)]

    def objects(self) -> tuple[Mapping[str, Any], ...]:
        """A list of JSON objects that templates can walk; nothing and empty text are an empty list."""
        if self.value is None or self.value == "":
            return ()
        cells = self.items()
        for cell in cells:
            if not _shallow(cell.object(), MAX_DEPTH):
                raise cell.bad(f"at most {MAX_DEPTH} levels")
        return tuple(cell.object() for cell in cells)


def cell(row: RawRow, column: str, named_in: str = "the source's `columns`") -> Cell:
    """The value of a column that the row must have (it may be null); `named_in` is where the recipe names the column."""
    if column not in row.fields:
        raise BadRowError(
            f"field `{column}` is missing; the row has {listed(row.fields)}",
            where=row.origin,
            change=f"{did_you_mean(column, row.fields)}correct {named_in}, or {MEND}",
        )
    return Cell(origin=row.origin, path=column, value=row.fields[column])


def parsed(value: Any) -> Any:
    """Text that is a JSON list or object as that, everything else unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def describe(value: Any) -> str:
    """What a value is, in a few words."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value:.12g}" if isinstance(value, float) or abs(value) < 10**15 else "a long number"
        case str():
            return f"the text {value[:40] + ('…' if len(value) > 40 else '')!r}" if value.strip() else "empty text"
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return f"an object with {listed(value)}" if value else "an empty object"
    return f"a value of type {type(value).__name__}"


def listed(names: Collection[str], most: int = 20) -> str:
    """Names in order, quoted, the long tail counted."""
    shown = [f"`{name}`" for name in sorted(names)[:most]]
    rest = len(names) - len(shown)
    return (", ".join(shown) or "no fields") + (f" and {rest} more" if rest > 0 else "")


def did_you_mean(name: str, names: Collection[str]) -> str:
    """`did you mean x? ` for the nearest name, or nothing."""
    near = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`? " if near else ""


def _shallow(value: Any, levels: int) -> bool:
    if isinstance(value, Mapping):
        return levels > 0 and all(_shallow(part, levels - 1) for part in value.values())
    if isinstance(value, list):
        return levels > 0 and all(_shallow(part, levels - 1) for part in value)
    return True

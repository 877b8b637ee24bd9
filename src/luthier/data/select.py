"""Which rows are kept: by field, by success, once each, and at most so many per group."""

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Literal

from luthier.core.errors import RecipeError
from luthier.data.fields import did_you_mean, listed
from luthier.data.formats import Format
from luthier.data.rows import Example, RawRow
from luthier.data.similar import NearIndex, canonical, digest, whole_text
from luthier.data.split import Placed, seeded
from luthier.recipe.schema import Source
from luthier.recipe.section import Scalar

FAILED = "failed interaction"
"""Reason for dropping an interaction whose `success` is there and not true."""


def wanted(row: RawRow, source: Source, format: Format) -> str:
    """The reason to drop the row (`where COLUMN`, `failed interaction`), or empty text to keep it.

    A row without the column of a `where` does not match it.
    """
    for column, values in source.where.items():
        if not any(_same(row.fields.get(column), value) for value in (values if isinstance(values, tuple) else (values,))):
            return f"where {column}"
    if format == "interactions":
        column = _success_column(source)
        succeeded = row.fields.get(column, True)
        if column not in source.where and not (_same(succeeded, True) or _same(succeeded, 1)):
            return FAILED
    return ""


def check_where(source: Source, columns: Collection[str]) -> None:
    """Refuses a `where` whose column no row of the source has; `columns` are the names seen over all its rows."""
    for column in source.where:
        if columns and column not in columns:
            raise RecipeError(
                f"`where` names column `{column}`, which no row of {source.path} has; they have {listed(columns)}",
                where="data.sources.where",
                change=f"{did_you_mean(column, columns)}name a column of the rows",
            )


class Deduplicator:
    """Remembers the examples it was shown. Memory per kept row: `exact` about 0.3 KB, `near` about 3.3 KB, `none` nothing.

    `exact`: same turns to the letter, tools and group; `near`: also an estimated Jaccard similarity of word 5-grams of at
    least 0.8 within the group. System turns do not count. Of twins the first in reading order stays.
    """

    def __init__(self, method: Literal["none", "exact", "near"]) -> None:
        self._method = method
        self._exact: dict[bytes, str] = {}
        self._near: defaultdict[str, NearIndex] = defaultdict(NearIndex)
        self._near_origins: defaultdict[str, list[str]] = defaultdict(list)

    def seen(self, example: Example) -> str:
        """Origin of the earlier twin; empty text where there is none, and the example is remembered."""
        if self._method == "none":
            return ""
        mark = digest(example.group + "\0" + canonical(example.conversation))
        if mark in self._exact:
            return self._exact[mark]
        if self._method == "near":
            index, origins = self._near[example.group], self._near_origins[example.group]
            sketch = index.sketch(whole_text(example.conversation))
            if (twin := index.twin(sketch)) is not None:
                return origins[twin]
            index.add(sketch)
            origins.append(example.origin)
        self._exact[mark] = example.origin
        return ""


def cap(rows: Sequence[Placed], most: int | Literal["all"], seed: int) -> list[int]:
    """Positions of the rows that stay, at most `most` of each group: those of smallest seeded hash of key and place within the key.

    The choice does not depend on the order in which keys come. Added rows may push old ones out; they never bring one in.
    """
    if most == "all":
        return list(range(len(rows)))
    num_of_key: defaultdict[str, int] = defaultdict(int)
    ranked: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for position, row in enumerate(rows):
        ranked[row.group].append((seeded(seed, "cap", f"{row.key}\0{num_of_key[row.key]}"), position))
        num_of_key[row.key] += 1
    return sorted(position for group in ranked.values() for _, position in sorted(group)[:most])


def _success_column(source: Source) -> str:
    column = source.columns.get("success", "success")
    return column if isinstance(column, str) else column[0]


def _same(found: Any, value: Scalar) -> bool:
    """Equality that bears CSV's text: "3" is 3, "True" is true, and a number is the text that JSON writes for it."""
    if isinstance(value, bool):
        return found is value or (isinstance(found, str) and found.strip().lower() == json.dumps(value))
    if isinstance(found, bool):
        return isinstance(value, str) and value.strip().lower() == json.dumps(found)
    if isinstance(value, str) or not isinstance(found, str):
        return found == value or (isinstance(found, int | float) and value == json.dumps(found))
    try:
        return float(found) == value
    except ValueError:
        return False

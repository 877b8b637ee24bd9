"""A recipe file with values changed and all else as it stood, to the byte."""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from luthier.core import jsonl
from luthier.core.errors import RecipeError
from luthier.core.finding import Change
from luthier.recipe.draft import Key
from luthier.recipe.load import LoadedRecipe, difference, load, resolve
from luthier.recipe.override import key_of
from luthier.recipe.parse import parse_text, text_of
from luthier.recipe.schema import PAIRS
from luthier.recipe.splice import spliced, without

Section = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A recipe file's new text, and what it says otherwise: `lora.r: 8 → 16`."""

    text: str
    changes: tuple[str, ...]


def apply_changes(path: Path, changes: Sequence[Change]) -> Edited:
    """The file with the changes made; it is not written. Raises RecipeError where that makes no recipe.

    Sections that are missing are made, and the other one of a pair (`epochs`, `max_steps`) goes.
    """
    wanted = load(path, [f"{change.path}={jsonl.dumps(change.value)}" for change in changes])
    before = text_of(path)
    after = _toml(before, changes) if path.suffix == ".toml" else _yaml(before, changes)
    if "\r\n" in before:
        after = after.replace("\r\n", "\n").replace("\n", "\r\n")
    if not _says(after, path, wanted):  # an anchor's value changes wherever it is repeated
        keys = ", ".join(change.path for change in changes)
        raise RecipeError(f"{keys} cannot be changed without changing more", where=str(path), change="change the file by hand")
    return Edited(text=after, changes=tuple(difference(load(path).text, wanted.text)))


def _says(text: str, path: Path, wanted: LoadedRecipe) -> bool:
    try:
        return resolve(parse_text(text, path)).recipe == wanted.recipe
    except RecipeError:
        return False


def _yaml(text: str, changes: Sequence[Change]) -> str:
    for change in changes:
        key = key_of(change.path)
        text = spliced(text if text.endswith("\n") else text + "\n", key, change.value)
        for pair in (pair for pair in PAIRS if key in pair):
            (other,) = set(pair) - {key}
            text = without(text, other)
    return text


def _toml(text: str, changes: Sequence[Change]) -> str:
    document = tomlkit.parse(text)
    for change in changes:
        _change(document, key_of(change.path), change.value)
    return tomlkit.dumps(document)


def _change(document: Section, key: Key, value: Any) -> None:
    """Set one value, in sections made where there are none or where a word such as `lora = "none"` stands."""
    section: Any = document
    for part in key[:-1]:
        if isinstance(part, str) and not isinstance(section.get(part), dict | list):
            section[part] = tomlkit.table()
        section = section[part]
    section[key[-1]] = value
    for pair in PAIRS:
        if key in pair:
            (other,) = set(pair) - {key}
            section.pop(other[-1], None)

"""A recipe file with values changed and all else as it stood: comments, order, quotes, the form of numbers."""

import io
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.util import load_yaml_guess_indent

from luthier.core import jsonl
from luthier.core.errors import RecipeError
from luthier.core.finding import Change
from luthier.recipe.draft import Key
from luthier.recipe.load import difference, load, resolve, styled
from luthier.recipe.override import key_of
from luthier.recipe.parse import parse_text, text_of
from luthier.recipe.schema import PAIRS

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
    if resolve(parse_text(after, path)).recipe != wanted.recipe:  # an anchor's value changes wherever it is repeated
        keys = ", ".join(change.path for change in changes)
        raise RecipeError(f"{keys} cannot be changed without changing more", where=str(path), change="change the file by hand")
    return Edited(text=after, changes=tuple(difference(load(path).text, wanted.text)))


def _yaml(text: str, changes: Sequence[Change]) -> str:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**31
    document = yaml.load(text)
    _, sequence, offset = load_yaml_guess_indent(text)
    yaml.indent(mapping=_indent(document), sequence=sequence or 4, offset=2 if offset is None else offset)
    for change in changes:
        _change(document, key_of(change.path), styled(change.value), CommentedMap)
    written = io.StringIO()
    yaml.dump(document, written)
    return written.getvalue()


def _toml(text: str, changes: Sequence[Change]) -> str:
    document = tomlkit.parse(text)
    for change in changes:
        _change(document, key_of(change.path), change.value, tomlkit.table)
    return tomlkit.dumps(document)


def _change(document: Section, key: Key, value: Any, new_section: Callable[[], Section]) -> None:
    """Set one value, in sections made where there are none or where a word such as `lora: none` stands."""
    section: Any = document
    for part in key[:-1]:
        if isinstance(part, str) and not isinstance(section.get(part), dict | list):
            _put(section, part, new_section(), top=section is document)
        section = section[part]
    _put(section, key[-1], value, top=section is document)
    for pair in PAIRS:
        if key in pair:
            (other,) = set(pair) - {key}
            section.pop(other[-1], None)


def _put(section: Any, name: str | int, value: Any, *, top: bool) -> None:
    """Set a section's value. In YAML the blank line before the next section belongs to the last value, so a new one goes before that."""
    if not isinstance(section, CommentedMap) or name in section:
        section[name] = value
    elif not top:
        section.insert(max(0, len(section) - 1), name, value)
    else:
        section[name] = value
        section.yaml_set_comment_before_after_key(name, before="\n")


def _indent(document: CommentedMap) -> int:
    """Columns by which a section's keys stand further in; 2 where the file has none."""
    return next((inner.lc.col for inner in document.values() if isinstance(inner, CommentedMap) and not inner.fa.flow_style()), 2)

"""A recipe file to a Recipe in which every value is explicit, absolute and has a known origin; and back to text."""

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from luthier.core import jsonl
from luthier.core.errors import RecipeError
from luthier.core.redact import secret_line
from luthier.recipe.base import DEMO
from luthier.recipe.check import check
from luthier.recipe.draft import Draft, Key, dotted, in_file
from luthier.recipe.override import override
from luthier.recipe.parse import parse, text_of, yaml_scalar, yaml_value
from luthier.recipe.schema import Recipe

FILES: tuple[Key, ...] = (
    ("data", "sources", "*", "path"),
    ("data", "split", "validation"),
    ("data", "split", "test"),
    ("evaluation", "tasks", "*", "data"),
    ("model", "chat_template"),
    ("launch", "env_file"),
)
"""Fields that are a file, or one of their words."""
PERHAPS_FILES: dict[Key, Callable[[str], bool]] = {
    ("model", "base"): os.path.isdir,
    ("lora", "init_from"): os.path.isdir,
    ("evaluation", "baseline"): os.path.isfile,
}
"""Fields that are a folder or file where one lies there, else a hub's or run's name."""
WORDS: dict[Key, str] = {("model", "chat_template"): "auto", ("model", "base"): DEMO, ("evaluation", "baseline"): "base"}

PLACES = re.compile(r"^(?:parallel|launch|tracking):.*\n(?:[ ].*\n)*", re.MULTILINE)
"""Sections that a run may go on with changed, as `dump` writes them."""

PLAIN = re.compile(r"[\w/.](?:[\w /.()+-]*[\w/.()+-])?")
"""Texts written without quotes. ruamel 0.19 leaves them off others too, some of which (`[?0]`, control characters) read back different."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecipe:
    """A recipe, and where each of its values comes from."""

    recipe: Recipe
    provenance: Mapping[str, str]
    """Dotted key → `recipe.yaml:12`, `tiny/recipe.yaml:3` (of an `@FILE`), `override` or `default`, for every value in `text`."""
    source: Path
    text: str
    """The resolved recipe as YAML, which loads to the same recipe from any folder."""


def load(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe in a .yaml, .yml or .toml file, changed by overrides, `k=v` or `@FILE`; raises RecipeError with all that is wrong.

    Relative paths are relative to the folder of the file they stand in (of the file, where it is a link); those of `k=v`, like any on a
    command line, to the current one.
    """
    draft = parse(path)
    if line := secret_line(text_of(path)):  # a comment is copied into the run folder, too
        raise _secret(f"{path}:{line}")
    for text in overrides:
        override(draft, text)
    return resolve(draft)


def resolve(draft: Draft) -> LoadedRecipe:
    """The recipe that a draft describes, its paths made absolute; raises RecipeError with all that is wrong, or for a secret in it."""
    for key, value in _leaves(draft.values, ()):
        if any(secret_line(str(text)) for text in (dotted(key), *(value if isinstance(value, list) else (value,)))):
            raise _secret(draft.where(key))
    make_absolute(draft)
    recipe = check(draft)
    provenance = {dotted(key): _provenance(key, draft) for key, _ in _leaves(_plain(recipe), ())}
    return LoadedRecipe(recipe=recipe, provenance=MappingProxyType(provenance), source=draft.file, text=dump(recipe))


def dump(recipe: Recipe) -> str:
    """The recipe as YAML with every value explicit, always the same text for the same recipe; `load` reads it back equal."""
    return written(_plain(recipe))


def written(values: Mapping[str, Any]) -> str:
    """Values as YAML, quoted where another reader than ours could misread them."""
    yaml = YAML()
    yaml.width = 2**31
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = io.StringIO()
    yaml.dump(styled(values), text)
    return text.getvalue()


def difference(old: str, new: str) -> list[str]:
    """`dotted.key: old → new` for every value in which the texts of two resolved recipes differ; raises RecipeError for what is no YAML."""
    before, after = values_of(old), values_of(new)
    return [
        f"{key}: {before.get(key, 'absent')} → {after.get(key, 'absent')}"
        for key in before | after
        if before.get(key, "absent") != after.get(key, "absent")
    ]


def values_of(text: str) -> dict[str, str]:
    """The values of a resolved recipe's text as JSON, by dotted key; raises RecipeError for what is no YAML."""
    return {dotted(key): jsonl.dumps(value) for key, value in _leaves(_values(text), ())}


def training_text(text: str) -> str:
    """A resolved recipe's text without the sections on where it is trained and who looks on: the same text, the same weights."""
    return PLACES.sub("", text)


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as mappings, lists and scalars, without what is not set (the other one of a pair)."""
    return recipe.model_dump(mode="json", exclude_none=True)


def styled(value: Any) -> Any:
    """Values as ruamel is to write them: lists of words in one line, texts of several lines as they read, quotes where they are needed."""
    if isinstance(value, dict):
        return {styled(name): styled(inner) for name, inner in value.items()}
    if isinstance(value, list):
        items = CommentedSeq(styled(item) for item in value)
        if not any(isinstance(item, dict) for item in value):
            items.fa.set_flow_style()
        return items
    if not isinstance(value, str):
        return value
    lines = value.split("\n")
    if len(lines) > 1 and all(line.isprintable() for line in lines):
        return LiteralScalarString(value)
    return value if PLAIN.fullmatch(value) and yaml_scalar(value) == value else DoubleQuotedScalarString(value)


def _values(text: str) -> Any:
    return yaml_value(text, (), {}, in_file(Path("recipe.yaml")))


def _leaves(value: Any, key: Key) -> Iterator[tuple[Key, Any]]:
    """Keys and values that hold no other named value; a list of words is one value."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, (*key, name))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, inner in enumerate(value):
            yield from _leaves(inner, (*key, number))
    else:
        yield key, value


def _secret(where: str) -> RecipeError:
    """A recipe is copied into the run folder, shown and passed on; with its secret taken out it would be another recipe."""
    change = (
        "keep it in the environment, where the library that needs it looks (HF_TOKEN, WANDB_API_KEY); docs/notes/security.md tells more"
    )
    return RecipeError("holds what looks like a secret", where=where, change=change)


def _provenance(key: Key, draft: Draft) -> str:
    origin = draft.origin(key) if draft.has(key) else None
    return origin.provenance if origin else "default"


def make_absolute(draft: Draft) -> None:
    """Replace relative paths of a draft by what they mean from where they stand."""
    for pattern in (*FILES, *PERHAPS_FILES):
        for key in _matching(draft, pattern):
            text = draft.value(key)
            if not isinstance(text, str) or text in {"", WORDS.get(pattern, "")}:
                continue
            path = os.path.abspath(os.path.join(draft.folder(key), os.path.expanduser(text)))
            if pattern in FILES or text.startswith(("./", "../", "~/")) or PERHAPS_FILES[pattern](path):
                draft.replace(key, path)


def _matching(draft: Draft, pattern: Key) -> list[Key]:
    """The draft's keys of this pattern, `*` being every item of a list."""
    if "*" not in pattern:
        return [pattern] if draft.has(pattern) else []
    before, after = pattern[: pattern.index("*")], pattern[pattern.index("*") + 1 :]
    items = draft.value(before) if draft.has(before) else []
    keys: list[Key] = [(*before, number, *after) for number in range(len(items))] if isinstance(items, list) else []
    return [key for key in keys if draft.has(key)]

"""A draft to a Recipe, or one error that lists everything wrong with it: where, what was found, what is expected, the nearest name."""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from luthier.core.errors import RecipeError
from luthier.recipe import fields
from luthier.recipe.draft import Draft, Key, dotted
from luthier.recipe.foreign import FOREIGN
from luthier.recipe.schema import PAIRS, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """One line of the error."""

    line: int
    where: str
    what: str
    change: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.change}" if self.change else "")


def check(draft: Draft) -> Recipe:
    """The recipe that the draft describes; raises RecipeError with all of its problems.

    What has the wrong key is reported, then read under its likely key, so that one typo is one line and hides no other problem.
    """
    try:
        return _recipe(draft)
    except ValidationError:
        mended = Draft(file=draft.file, values=deepcopy(draft.values), origins=dict(draft.origins))
        problems = [*_unknown_keys(mended), *_both_of_a_pair(mended)]
    try:
        _recipe(mended)
    except ValidationError as error:
        problems += _wrong_values(error, mended)
    raise _one_error(draft, sorted(problems, key=lambda problem: (problem.line == 0, problem.line)))


def nearest(word: str, words: Sequence[str]) -> str:
    """The likeliest of the words that a mistyped one was meant to be; empty where none is near."""
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.6)), "")


def _recipe(draft: Draft) -> Recipe:
    """Strictly: no text where a number belongs, no true where a count does. Through JSON, whose lists may be tuples in strict mode."""
    try:
        text = json.dumps(draft.values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RecipeError("holds text that is not Unicode (half of a surrogate pair)", where=str(draft.file)) from error
    return Recipe.model_validate_json(text, strict=True)


def _unknown_keys(draft: Draft) -> Iterator[_Problem]:
    """A problem for each unknown key, which is moved to its likely name, or else taken out; then for those in what was moved."""
    while unknown := list(_unknown(draft.values, fields.root(), ())):
        for key in unknown:
            name, section = str(key[-1]), key[:-1]
            near, change = _likely(name, section, fields.at(section) or fields.root())
            yield _Problem(line=_line(draft, key), where=draft.where(key), what=f"unknown key `{name}`", change=change)
            if near and not draft.has((*section, near)):
                draft.move(key, near)
            else:
                draft.remove(key)


def _unknown(value: Any, place: fields.Place, key: Key) -> Iterator[Key]:
    if isinstance(value, dict) and (place.fields or place.named):
        for name, inner in value.items():
            deeper = place.at(name)
            if deeper is None:
                yield (*key, name)
            else:
                yield from _unknown(inner, deeper, (*key, name))
    elif isinstance(value, list) and place.item:
        for number, inner in enumerate(value):
            yield from _unknown(inner, place.item, (*key, number))


def _likely(name: str, section: Key, place: fields.Place) -> tuple[str, str]:
    """The field of this section that was probably meant (or nothing), and the advice to give."""
    prefix = dotted(tuple(part for part in section if isinstance(part, str)))
    prefix = f"{prefix}." if prefix else ""
    if target := FOREIGN.get(name):
        here = target.removeprefix(prefix)
        docs = fields.at(tuple(target.split(".")))
        return here if here in place.names else "", f"here it is `{target}`: {docs.doc if docs else ''}"
    if elsewhere := [known for known in fields.known_keys() if known.rpartition(".")[2] == name]:
        return "", f"it belongs in {' or '.join(f'`{known}`' for known in elsewhere)}"
    if near := nearest(name, place.names):
        return near, f"did you mean `{prefix}{near}`?"
    if near := nearest(name, [known.rpartition(".")[2] for known in fields.known_keys()]):
        return "", f"did you mean {' or '.join(f'`{known}`' for known in fields.known_keys() if known.rpartition('.')[2] == near)}?"
    return "", f"known here: {', '.join(place.names)}"


def _both_of_a_pair(draft: Draft) -> Iterator[_Problem]:
    """A problem for each pair of which both are given; the second is taken out."""
    for one, other in PAIRS:
        if all(draft.has(key) and draft.value(key) is not None for key in (one, other)):
            what = f"`{dotted(one)}` and `{dotted(other)}` both say how long"
            yield _Problem(line=_line(draft, other), where=draft.where(other), what=what, change="keep one")
            draft.remove(other)


def _wrong_values(error: ValidationError, draft: Draft) -> Iterator[_Problem]:
    """A problem for each key that pydantic complains of, however many alternatives it tried there."""
    messages: dict[Key, str] = {}
    for detail in error.errors(include_url=False):
        key = _located(detail["loc"], draft, missing=detail["type"] == "missing")
        reason = detail.get("ctx", {}).get("error")
        messages.setdefault(key, str(reason) if isinstance(reason, ValueError) else "")
    for key, message in messages.items():
        if any(other != key and other[: len(key)] == key for other in messages):
            continue
        if message:
            at = _mentioned(message, key, draft)
            yield _Problem(line=_line(draft, at), where=draft.where(at), what=message)
        else:
            yield _wrong_value(key, draft)


def _wrong_value(key: Key, draft: Draft) -> _Problem:
    place = fields.at(key) or fields.root()
    value = draft.value(key) if draft.has(key) else None
    found = f"found {_found(value)}" if draft.has(key) else "is missing"
    change = ""
    if isinstance(value, str) and (near := nearest(value, place.choices)):
        change = f"did you mean `{near}`?"
    elif isinstance(value, int | float) and place.expected.startswith("text"):
        change = "write it in quotes"
    elif names := place.section.names:
        change = f"its keys: {', '.join(names)}"
    return _Problem(line=_line(draft, key), where=draft.where(key), what=f"{found}, expected {place.expected}", change=change)


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _located(loc: tuple[str | int, ...], draft: Draft, *, missing: bool) -> Key:
    """The draft's key for a pydantic location, which also names the alternative it tried: `("lora", "Lora", "r")`."""
    key: Key = ()
    for part in loc:
        if draft.has((*key, part)):
            key = (*key, part)
    return (*key, loc[-1]) if missing else key


def _mentioned(message: str, section: Key, draft: Draft) -> Key:
    """The key below a section that a message speaks of; the section where it names none."""
    words = set(re.findall(r"[\w.-]*\w", message))
    below = [key for key in draft.origins if key[: len(section)] == section and len(key) > len(section)]
    return next((key for key in below if words & {dotted(key[len(section) :]), str(key[-1])}), section)


def _line(draft: Draft, key: Key) -> int:
    origin = draft.origin(key)
    return origin.line if origin else 0


def _one_error(draft: Draft, problems: Sequence[_Problem]) -> RecipeError:
    if len(problems) == 1:
        (problem,) = problems
        return RecipeError(problem.what, where=problem.where, change=problem.change)
    return RecipeError("\n  ".join((f"{len(problems)} problems", *map(str, problems))), where=str(draft.file))

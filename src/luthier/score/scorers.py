"""Scorers: an answer and its reference in, a number from 0 (wrong) to 1 (right) out.

The built-in ones look at the final answer: `<think>…</think>` is removed from answer and reference before they compare. A
scorer of your own gets both as they are. No answer of a model makes a built-in scorer raise; a reference that cannot be one
(`json` without JSON, `number` without a number) is a fault of the data and raises DataError.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from luthier.core.errors import DataError, RecipeError
from luthier.score import own, schema

Scorer = Callable[[str, str], float]

HARNESS = re.compile(r"lm_eval(?P<chat>_chat)?:(?P<task>.+):(?P<metric>[^:,]+)(?:,(?P<filter>[^:,]+))?")
"""A task of lm-evaluation-harness, asked as it is or through the chat template, and what is told of it."""
PATTERN_SECONDS = 1.0
# A template may open the thinking in the prompt, so that an answer only closes it; a cut answer may only open it.
THINKING = re.compile(r"<think>.*?(?:</think>|\Z)|\A(?:(?!<think>).)*?</think>", re.DOTALL)
FENCE = re.compile(r"```[\w-]*\s*\n(.*?)```", re.DOTALL)
LABEL_ENDS = re.compile(r"[.,;:!?]\s|\s[-–—(]")
AROUND_A_LABEL = " \t\r\n\"'`*_.,;:!?()[]{}<>«»„“”‘’"
# A sign counts only where no word or number stands right before it: 10-20 ends in 20, GPT-4 in 4.
NUMBER = re.compile(
    r"(?:(?<![\w).])[-+])?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)(?:[eE][-+]?[0-9]+)?",
)


def exact(answer: str, reference: str) -> float:
    """1 where the final answer is the reference, but for white space around it."""
    return float(final(answer) == final(reference))


def label(answer: str, reference: str) -> float:
    """1 where the first line of the final answer names the label: case, quotes, markup and closing punctuation aside, and an
    explanation after `.`, `:`, `,` … or a dash left out. `**Net** – because …` is `net`; `net news` is not, nor is `C` `C++`."""
    line = final(answer).split("\n", 1)[0]
    return float(_label(reference) in (_label(line), _label(LABEL_ENDS.split(line.strip(AROUND_A_LABEL), maxsplit=1)[0])))


def json_equal(answer: str, reference: str) -> float:
    """1 where both are the same JSON value, key order and spelling of numbers aside; the answer may be one fenced code block."""
    expected = _parse(final(reference), "reference is not JSON")
    try:
        return float(_same(_answered(answer), expected))
    except (ValueError, RecursionError):
        return 0.0


def json_schema(answer: str, reference: str) -> float:
    """1 where the answer, which may be one fenced code block, is JSON that is valid under the reference, a JSON schema (draft 2020-12, or
    what its `$schema` names; `score/schema.py` says what of it holds)."""
    valid = _validity(final(reference))
    try:
        return float(valid(_answered(answer)))
    except (ValueError, RecursionError, ArithmeticError):  # the last: whether 400 digits are a multiple of 0.01
        return 0.0


def regex(answer: str, reference: str) -> float:
    """1 where the reference, a pattern (of the `regex` library), matches the whole final answer; write `.*` for what may stand around.

    A match that is not found within a second counts as none, so a pattern that backtracks without end cannot stop an evaluation.
    """
    import regex as patterns

    try:
        pattern = patterns.compile(reference, patterns.DOTALL)
    except patterns.error as error:
        raise DataError(
            f"reference {reference!r} is not a pattern: {error}", change="escape what is meant literally, or use `contains`"
        ) from error
    try:
        return float(pattern.fullmatch(final(answer), timeout=PATTERN_SECONDS) is not None)
    except TimeoutError:
        return 0.0


def number(answer: str, reference: str) -> float:
    """1 where the last number of the final answer equals the last of the reference within a millionth; `1,234.5` is read as 1234.5."""
    expected = _last_number(final(reference))
    if expected is None:
        raise DataError(f"reference {reference!r} has no number", change="give a number as the answer, or use another scorer")
    found = _last_number(final(answer))
    return float(found is not None and math.isclose(found, expected, rel_tol=1e-6))


def contains(answer: str, reference: str) -> float:
    """1 where the reference stands somewhere in the final answer; case and runs of white space aside."""
    wanted = _words(final(reference))
    if not wanted:
        raise DataError("the reference is empty, which every answer contains", change="remove the row, or use `exact`")
    return float(wanted in _words(final(answer)))


SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "label": label,
    "choice": exact,  # of an answer that can be nothing but one of the references' labels
    "json": json_equal,
    "json_schema": json_schema,
    "regex": regex,
    "number": number,
    "contains": contains,
    "judge": lambda answer, reference: 0.0,  # until the judge has seen it, who sees all answers together
}


def scorer(name: str) -> Scorer:
    """The scorer of this name, or `module:function` of the user's own; raises RecipeError where there is none."""
    if ":" in name:
        return _own(name)
    if name not in SCORERS:
        raise unknown(name, "scorer", SCORERS)
    return SCORERS[name]


def unknown(name: str, kind: str, known: Iterable[str]) -> RecipeError:
    """What is said of a name that no scorer, or reward, has: the nearest one, and all."""
    near = difflib.get_close_matches(name, known := list(known), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return RecipeError(f"no {kind} is called {name!r}", change=f"{hint}there are {', '.join(known)}, and module:function of your own")


def metric_name(name: str) -> str:
    """What a scorer's metric is called in bounds and tables: its name; the function's of `module:function`, the metric's of `lm_eval:…`."""
    found = HARNESS.fullmatch(name)
    return found["metric"] if found else name.rpartition(":")[2]


def final(answer: str) -> str:
    """The answer without its thinking and without white space around it."""
    return THINKING.sub("", answer).strip()


def _own(name: str) -> Scorer:
    """A function of the user's own; what it returns is checked."""
    function = own.load(name, "scorer", "a function (answer, reference) → number in 0…1")

    def score(answer: str, reference: str) -> float:
        with own.blamed(f"scorer {name!r}"):
            value = function(answer, reference)
            share = own.number(value)
        if not 0 <= share <= 1:
            raise RecipeError(f"scorer {name!r} returned {value!r}", change="return a number in 0…1")
        return share

    return score


def _label(text: str) -> str:
    """A label for comparison; one that is nothing but punctuation stays as it is."""
    return _words(text.strip(AROUND_A_LABEL)) or _words(text)


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()


def _last_number(text: str) -> float | None:
    found = NUMBER.findall(text.replace("−", "-"))
    value = float(found[-1].replace(",", "")) if found else math.nan
    return value if math.isfinite(value) else None


def _answered(answer: str) -> Any:
    """The JSON value that the final answer is, or the one in its first fence; raises ValueError or RecursionError."""
    text = final(answer)
    fenced = FENCE.search(text)
    return _strict(fenced[1] if fenced else text)


@lru_cache(maxsize=256)  # a group of answers has one reference
def _validity(reference: str) -> Callable[[Any], bool]:
    return schema.validity(_parse(reference, "reference is not JSON"))


def _strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def _parse(text: str, what: str) -> Any:
    try:
        return _strict(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what}: {error}", change="mend the row, or use another scorer") from error


def _same(one: Any, other: Any) -> bool:
    """Equality in JSON's sense: 1 is 1.0, but true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)

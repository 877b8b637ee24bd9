"""Scorers: an answer and its reference in, a number from 0 (wrong) to 1 (right) out.

The built-in ones look at the final answer: `<think>…</think>` is removed from answer and reference before they compare. A
scorer of your own gets both as they are. No answer of a model makes a built-in scorer raise; a reference that cannot be one
(`json` without JSON, `number` without a number) is a fault of the data and raises DataError.
"""

import difflib
import importlib
import json
import math
import re
import sys
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, RecipeError

Scorer = Callable[[str, str], float]

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
    text = final(answer)
    fenced = FENCE.search(text)
    expected = _parse(final(reference), "reference is not JSON")
    try:
        return float(_same(_strict(fenced[1] if fenced else text), expected))
    except (ValueError, RecursionError):
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
        near = difflib.get_close_matches(name, SCORERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(f"no scorer is called {name!r}", change=f"{hint}there are {', '.join(SCORERS)}, and module:function of your own")
    return SCORERS[name]


def metric_name(name: str) -> str:
    """What a scorer's metric is called in bounds and tables: its name, or the function's for `module:function`."""
    return name.rpartition(":")[2]


def final(answer: str) -> str:
    """The answer without its thinking and without white space around it."""
    return THINKING.sub("", answer).strip()


def _own(name: str) -> Scorer:
    """A function from an importable module or one in the current folder; what it returns is checked."""
    module_name, _, function_name = name.partition(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:  # `os:rename` would be called with an answer and a reference
        raise RecipeError(f"scorer {name!r} is Python's own {module_name}", change="name a function that was written to score")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that it hides no installed module
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the module, which may raise anything
        change = f"put {module_name.replace('.', '/')}.py into the current folder, or install it"
        raise RecipeError(f"scorer {name!r}: {type(error).__name__}: {error}", change=change) from error
    function = vars(module).get(function_name)
    if not callable(function):
        change = "name a function (answer, reference) → number in 0…1"
        raise RecipeError(f"scorer {name!r}: {module_name} has no function {function_name!r}", change=change)

    def score(answer: str, reference: str) -> float:
        try:
            value = function(answer, reference)
        except Exception as error:
            raise RecipeError(
                f"scorer {name!r} raised {type(error).__name__}: {error}", change=f"mend {function_name} for this row"
            ) from error
        share = float(value) if isinstance(value, Real) else math.nan
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

"""What a sweep tries: axes of values, and trials, each of which is a recipe with some values changed.

`lora.r=16,32,64` lists values. `training.learning_rate=1e-4..1e-3` is a range to draw from, evenly by its logarithm where both ends are
above 0. `lora.r:lora.alpha=16:32,32:64` changes two fields together.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from luthier.core import jsonl
from luthier.core.errors import UsageError
from luthier.core.finding import Change

Choice = tuple[str, ...]
"""Overrides, `k=v`, that are made together; none: the recipe as it is."""

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})")
PART = re.compile(r"""(?:\[[^\]]*\]|\{[^}]*\}|"[^"]*"|'[^']*'|[^,])+""")
"""A value; a list, a mapping or a quoted text holds its commas."""
LONGEST_NAME = 100
DRAWS = 1000
"""Times that a trial which there is already is drawn again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """Values to choose from, in the order given."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """A range to draw numbers from."""

    name: str
    low: float
    high: float
    whole: bool

    def draw(self, random: Random) -> Choice:
        """A number with three digits, which is what its name shows: 0.000274."""
        at = random.random()
        value = self.low * (self.high / self.low) ** at if self.low > 0 else self.low + (self.high - self.low) * at
        return (f"{self.name}={round(value) if self.whole else float(f'{value:.3g}')}",)


Axis = Listed | Between


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A recipe with these overrides, trained as the run of this name."""

    name: str
    overrides: Choice

    @property
    def told(self) -> str:
        """`lora.r=32 training.learning_rate=1e-4`, as the command line takes it."""
        return " ".join(self.overrides) or "as it is"


def axis(text: str) -> Axis:
    """The axis that `--over` describes; raises UsageError."""
    keys, equals, values = text.partition("=")
    names = [key.strip() for key in keys.split(":")]
    if not equals or not all(names):
        raise UsageError(f"--over {text!r} is no field with values", change="write it as --over lora.r=16,32,64")
    if found := RANGE.fullmatch(values.strip()):
        low, high = float(found[1]), float(found[2])
        if len(names) > 1 or not low < high:
            raise UsageError(f"--over {text!r} is no range", change="one field and two numbers, the lower first: 1e-5..1e-3")
        return Between(name=names[0], low=low, high=high, whole=all(re.fullmatch(r"[+-]?\d+", end) for end in found.groups()))
    choices = tuple(_choice(names, value.strip(), text) for value in PART.findall(values))
    if len(set(choices)) < max(2, len(choices)):
        what = "a value twice" if len(choices) > 1 else "one value"
        raise UsageError(f"--over {text!r} has {what}", change="give two or more that differ")
    return Listed(name=":".join(names), choices=choices)


def levers(code: str, changes: Sequence[Change], *, alternatives: bool) -> Listed:
    """The axis of a finding: the recipe as it is, and each change that it offers, or all of them where they belong together."""
    made = tuple(f"{change.path}={_text(change.value)}" for change in changes)
    return Listed(name=code, choices=((), *((each,) for each in made)) if alternatives else ((), made))


def grid(axes: Sequence[Axis]) -> list[Choice]:
    """Every combination, the last axis the fastest; raises UsageError for a range, which has no end of them."""
    if ranges := [each.name for each in axes if isinstance(each, Between)]:
        raise UsageError(f"{ranges[0]} is a range, and a grid takes values", change="list them, or draw: --trials N")
    listed = [each.choices for each in axes if isinstance(each, Listed)]
    return [tuple(itertools.chain.from_iterable(parts)) for parts in itertools.product(*listed)]


def draw(axes: Sequence[Axis], number: int, seed: int) -> list[Choice]:
    """So many combinations by chance, none twice; all of them where there are no more. The first of more are those of fewer."""
    random = Random(seed)
    if all(isinstance(each, Listed) for each in axes):
        combinations = grid(axes)
        random.shuffle(combinations)
        return combinations[:number]
    found: dict[Choice, None] = {}
    for _ in range(number * DRAWS):
        parts = [random.choice(each.choices) if isinstance(each, Listed) else each.draw(random) for each in axes]
        found[tuple(itertools.chain.from_iterable(parts))] = None
        if len(found) == number:
            break
    return list(found)


def trials(name: str, combinations: Sequence[Choice]) -> tuple[Trial, ...]:
    """Each combination with the name of its run, which follows from its values alone: another sweep over the same finds the run again."""
    return tuple(Trial(name=_named(name, choice), overrides=choice) for choice in combinations)


def at_edges(axes: Sequence[Axis], best: Choice) -> list[str]:
    """Of the best's values those that are the least or the largest number tried of their field, in words."""
    columns = [column for each in axes if isinstance(each, Listed) for column in itertools.zip_longest(*each.choices, fillvalue="")]
    found = []
    for column in columns:
        numbers = {text: float(value) for text in column if re.fullmatch(NUMBER, value := text.partition("=")[2])}
        if len(set(numbers.values())) < 2 or len(numbers) < len(set(column)):  # words have no edge
            continue
        ends = {"smallest": min(numbers.values()), "largest": max(numbers.values())}
        found += [f"{text} is the {end} tried" for text in best if text in numbers for end, value in ends.items() if numbers[text] == value]
    return found


def _choice(names: Sequence[str], value: str, text: str) -> Choice:
    values = [part.strip() for part in value.split(":")] if len(names) > 1 else [value]
    if len(values) != len(names) or not all(values):
        change = "as many as there are fields: lora.r:lora.alpha=16:32,32:64"
        raise UsageError(f"--over {text!r}: {value!r} is not {len(names)} values", change=change)
    return tuple(f"{name}={part}" for name, part in zip(names, values, strict=True))


def _text(value: str | int | float | bool) -> str:
    return value if isinstance(value, str) else jsonl.dumps(value)


def _named(name: str, choice: Choice) -> str:
    """`NAME.r-32.learning_rate-1e-4`; what cannot stand in a name is told by a digest of all."""
    plain = ".".join((name, *(f"{key.rpartition('.')[2]}-{value}" for key, _, value in (text.partition("=") for text in choice))))
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", plain)
    if safe == plain and len(safe) <= LONGEST_NAME:
        return plain
    digest = hashlib.sha256("\0".join(choice).encode()).hexdigest()[:8]
    return f"{safe[: LONGEST_NAME - 9]}.{digest}"

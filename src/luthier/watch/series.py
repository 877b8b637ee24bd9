"""What a run measured, as columns of numbers: metrics.jsonl, read at once, read on from where it ended, thinned for drawing.

    series = read(run.metrics)
    series.train["loss"], series.validation["step"]
    series = read_on(run.metrics, series)            # a moment later: only what was appended is read
    drawn = series.train.thinned("loss", points=1000)
    series.train["reward"], series.train.parts["reward/exact"]   # of a run whose answers are rewarded

A number that is not there (null: not finite, or not measured) is NaN. 200,000 lines, 67 MB, take 0.6 s (2026-11-29, two shared cores of
a Xeon). Lines of rewarded answers have more keys, and are read as JSON: each has waited for its answers for seconds.
"""

import functools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import numpy.typing as npt

from luthier.core.jsonl import ReadSoFar, opened_behind

Floats = npt.NDArray[np.float64]
Measured = Literal[
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "supervised_tokens",
    "tokens_per_second",
    "seconds",
    "data_seconds",
    "memory_bytes",
    "device_utilization",
]
"""The numbers of a line; they stand in it in this order, with `kind` after `epoch` (`luthier.train.record.Line`)."""
Rewarded = Literal["reward", "answer_tokens", "cut", "silent", "failed", "entropy", "kl", "drift", "clipped"]
"""What a step's line tells besides where answers are rewarded (`luthier.rl.record`)."""
Column = Measured | Rewarded
COLUMNS: tuple[Measured, ...] = get_args(Measured)
REWARDED: tuple[Rewarded, ...] = get_args(Rewarded)
PART = "reward/"
"""Begins the keys of several rewards, each by itself."""
KINDS = {"train": 0.0, "validation": 1.0}
KEYS = (*COLUMNS[:2], "kind", *COLUMNS[2:])
KIND = KEYS.index("kind")
BLOCK_BYTES = 1 << 20
"""Read at once: what is made of it stays in the processor's cache."""

FORM = ("{" + ", ".join(f'"{key}": ' for key in KEYS) + "}\n").encode()
"""What is left of a line as the trainer writes it, without its numbers."""
WORDS = ((b'"train"', b"0"), (b'"validation"', b"1"), (b"null", b"NAN"), (b"e-", b"E-"), (b"e+", b"E+"))
"""Words that stand for numbers; and exponents, which are told from the letters of keys by it."""
OF_NUMBERS, OF_KEYS = b"0123456789.+-ENA", b'abcdefghijklmnopqrstuvwxyz_"{}: '
LINES_TO_COMMAS = bytes.maketrans(b"\n", b",")


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """What is drawn of a curve: x and y of the same number, x rising."""

    x: Floats
    y: Floats
    low: Floats = field(default_factory=lambda: np.empty(0))
    high: Floats = field(default_factory=lambda: np.empty(0))
    """Of the interval about each, of what has one."""


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Lines of one kind, by step: `lines["loss"]` is a column of all of them."""

    values: Floats = field(default_factory=lambda: np.empty((len(COLUMNS), 0)))
    """A row for each of COLUMNS."""
    more: Mapping[str, Floats] = field(default_factory=dict)
    """Columns that only lines of rewarded answers have, by name; none where there is no such line."""

    def __len__(self) -> int:
        return len(self.values[0])

    def __getitem__(self, column: Column) -> Floats:
        if column in COLUMNS:
            found: Floats = self.values[COLUMNS.index(column)]
            return found
        return self.more[column] if column in self.more else np.full(len(self), np.nan)

    @property
    def finite(self) -> "Lines":
        """Those whose loss is a number."""
        return self.where(np.isfinite(self["loss"]))

    @property
    def parts(self) -> Mapping[str, Floats]:
        """Of several rewards each by itself, without its weight: `reward/exact`."""
        return {name: column for name, column in self.more.items() if name.startswith(PART)}

    def where(self, chosen: npt.NDArray[np.bool_]) -> "Lines":
        """Some of them."""
        return Lines(self.values[:, chosen], {name: column[chosen] for name, column in self.more.items()})

    def measured(self, column: Column) -> bool:
        """Whether any line has it as a number."""
        return bool(np.isfinite(self[column]).any())

    def thinned(self, column: Column, points: int, *, against: Column = "step") -> Points:
        """At most so many points of a column: the least and the largest of each run of lines, so that no spike is lost.

        What is not a number is left out.
        """
        x, y = self[against], self[column]
        x, y = x[there := np.isfinite(y)], y[there]
        if len(y) <= points:
            return Points(x=x, y=y)
        num = max(1, points // 2)
        width = math.ceil(len(y) / num)
        padded = np.concatenate([y, np.full(-len(y) % width, y[-1])]).reshape(-1, width)
        begins = np.arange(len(padded)) * width
        found = np.stack([begins + padded.argmin(1), begins + padded.argmax(1)])
        kept = np.unique(np.minimum(found, len(y) - 1))
        return Points(x=x[kept], y=y[kept])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series(ReadSoFar):
    """All that a run's metrics.jsonl holds so far."""

    train: Lines = field(default_factory=Lines)
    validation: Lines = field(default_factory=Lines)
    num_damaged: int = 0
    """Lines that are no records; they are passed over."""

    @property
    def behind(self) -> "Series":
        """The same place in the file, without what was read: for who wants only what is new."""
        return Series(offset=self.offset, file=self.file)


def read(path: Path) -> Series:
    """The series in a metrics.jsonl; an empty one where there is none yet. A torn last line is passed over."""
    return read_on(path, Series())


def read_on(path: Path, series: Series) -> Series:
    """The series with what was appended to its file since; all of it anew where another file has taken its place."""
    try:
        with opened_behind(path, series) as (file, series):
            return _with(series, _blocks(file))
    except FileNotFoundError:
        return Series()


def _blocks(file: BinaryIO) -> Iterator[list[bytes]]:
    """The whole lines that are left of a file, about BLOCK_BYTES at once."""
    while lines := file.readlines(BLOCK_BYTES):
        yield lines if lines[-1].endswith(b"\n") else lines[:-1]


def _with(series: Series, blocks: Iterator[list[bytes]]) -> Series:
    parts, num_lines, offset = list[_Block](), 0, series.offset
    for lines in blocks:
        text = b"".join(lines)
        parts.append(_numbers(text))
        num_lines, offset = num_lines + len(lines), offset + len(text)
    found = np.concatenate([part.rows for part in parts]) if parts else np.empty((0, len(KEYS)))
    kinds, values = found[:, KIND], np.delete(found, KIND, axis=1).T
    read = Lines(values, _joined([(len(part.rows), part.more) for part in parts]))
    return replace(
        series,
        train=_longer(series.train, read.where(kinds == KINDS["train"])),
        validation=_longer(series.validation, Lines(values[:, kinds == KINDS["validation"]])),
        num_damaged=series.num_damaged + num_lines - len(found),
        offset=offset,
    )


def _longer(lines: Lines, new: Lines) -> Lines:
    if not len(new):
        return lines
    return Lines(np.concatenate([lines.values, new.values], axis=1), _joined([(len(each), each.more) for each in (lines, new)]))


def _joined(parts: Sequence[tuple[int, Mapping[str, Floats]]]) -> dict[str, Floats]:
    """Columns one after the other, of so many lines each; NaN where a part has not all of them."""
    names = dict.fromkeys(name for _, more in parts for name in more)
    return {name: np.concatenate([more.get(name, np.full(num, np.nan)) for num, more in parts]) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """Of some lines: a row for each, with the numbers of KEYS, and the columns that those of rewarded answers have besides."""

    rows: Floats
    more: Mapping[str, Floats] = field(default_factory=dict)


def _numbers(text: bytes) -> _Block:
    """The numbers of lines that all have the trainer's own form, a row for each; of others, those that can be read.

    Eight times as fast as a parser of JSON: what is left of each line without its numbers must be FORM to the letter.
    """
    marked = functools.reduce(lambda marked, word: marked.replace(*word), WORDS, text)
    num_lines = text.count(b"\n")
    if marked.translate(None, OF_NUMBERS) == FORM * num_lines:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # numpy's, of text that is no number
            with suppress(DeprecationWarning, ValueError):
                numbers = np.fromstring(marked.translate(LINES_TO_COMMAS, OF_KEYS).decode(), sep=",")
                return _Block(rows=numbers.reshape(num_lines, len(KEYS)))
    return _salvaged(text.splitlines())


def _salvaged(lines: Sequence[bytes]) -> _Block:
    rows, more = list[list[float]](), list[dict[str, float]]()
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):  # it is no record of a step
            record = json.loads(line)
            row, besides = _row(record), {key: _number(record[key]) for key in record if key in REWARDED or key.startswith(PART)}
            rows.append(row)
            more.append(besides)
    names = dict.fromkeys(name for each in more for name in each)
    columns = {name: np.array([each.get(name, math.nan) for each in more]) for name in names}
    return _Block(rows=np.array(rows, dtype=np.float64).reshape(-1, len(KEYS)), more=columns)


def _row(record: Mapping[str, Any]) -> list[float]:
    """The numbers that every line has; raises KeyError or TypeError where it is no record of a step."""
    if not isinstance(record["step"], int):
        raise TypeError
    return [KINDS[record[key]] if key == "kind" else _number(record.get(key)) for key in KEYS]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan

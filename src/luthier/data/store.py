"""Prepared data on disk: token rows over memory-mapped arrays, the examples they came from, and the summary. numpy only.

A folder `prepared/HASH` holds data.json and, for each split, SPLIT.jsonl (examples as they were rendered) and four arrays:
SPLIT.ids.npy (int32, all rows end to end), SPLIT.supervised.npy (bool, as long), SPLIT.offsets.npy (int64, rows + 1),
SPLIT.example.npy (int64, the line of SPLIT.jsonl from 0 that a row was rendered from).
"""

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from luthier.core import jsonl
from luthier.core.chat import Conversation, Message
from luthier.core.errors import DataError
from luthier.data.rows import Example
from luthier.runs.summary import DataSummary

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """Token ids and loss mask of one row. `supervised[i]`: token i is a target, predicted from ids[:i]; never true for i = 0."""

    ids: Ids
    supervised: Mask

    def __len__(self) -> int:
        return len(self.ids)


class Rows(Hashable, Protocol):
    """Token rows, with what is known of them all: what steps, ranks and micro batches are divided by."""

    @property
    def example_index(self) -> npt.NDArray[np.int64]:
        """Row → which example it is of; those of one begin alike."""

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row."""

    @property
    def num_supervised(self) -> npt.NDArray[np.int32]:
        """Supervised tokens of each row."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TokenRow: ...


@dataclass(frozen=True, eq=False)
class HeldRows:
    """Rows in memory."""

    rows: Sequence[TokenRow]
    example_index: npt.NDArray[np.int64]

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row."""
        return np.array([len(row) for row in self.rows], np.int32)

    @cached_property
    def num_supervised(self) -> npt.NDArray[np.int32]:
        """Supervised tokens of each row."""
        return np.array([row.supervised.sum() for row in self.rows], np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenRow:
        return self.rows[index]


class TokenRows(Sequence[TokenRow]):
    """The token rows of one split, read from disk as they are asked for."""

    def __init__(self, folder: Path, split: str) -> None:
        self._ids = _open(folder / f"{split}.ids.npy")
        self._supervised = _open(folder / f"{split}.supervised.npy")
        self._offsets = np.load(folder / f"{split}.offsets.npy", allow_pickle=False)
        self.example_index: npt.NDArray[np.int64] = np.load(folder / f"{split}.example.npy", allow_pickle=False)
        """Row → position in `Prepared.examples(split)`."""
        self.lengths: npt.NDArray[np.int32] = np.diff(self._offsets).astype(np.int32)
        """Tokens of each row."""
        totals = np.concatenate([[0], np.cumsum(self._supervised, dtype=np.int64)])
        self.num_supervised: npt.NDArray[np.int32] = np.diff(totals[self._offsets]).astype(np.int32)
        """Supervised tokens of each row."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenRow:  # type: ignore[override]  # rows are taken one by one; no reader wants a slice
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        span = slice(self._offsets[index], self._offsets[index + 1])
        return TokenRow(ids=self._ids[span], supervised=self._supervised[span])


@dataclass(frozen=True, slots=True)
class Prepared:
    """A folder of prepared data."""

    folder: Path

    @property
    def summary(self) -> DataSummary:
        """What was found, kept, dropped and cut."""
        return DataSummary.read(self.folder / "data.json")

    def rows(self, split: str) -> TokenRows:
        """The token rows of `train`, `validation` or `test`."""
        return TokenRows(self.folder, split)

    def examples(self, split: str) -> list[Example]:
        """The conversations of a split, in the order of their rows."""
        return list(self.stream_examples(split))

    def stream_examples(self, split: str) -> Iterator[Example]:
        """`examples`, one at a time."""
        with (self.folder / f"{split}.jsonl").open(encoding="utf-8") as lines:
            yield from map(example_from_json, lines)


class RowWriter:
    """Appends token rows to a split's arrays; a context that, left without an error, makes them readable as `TokenRows`."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self._ids = _GrowingArray(folder / f"{split}.ids.npy", np.dtype(np.int32))
        self._supervised = _GrowingArray(folder / f"{split}.supervised.npy", np.dtype(np.bool_))
        self._lengths: list[int] = []
        self._examples: list[int] = []

    def add(self, rows: Sequence[TokenRow], example: int) -> None:
        """Append the rows that example number `example` of the split was rendered to."""
        for row in rows:
            self._ids.append(row.ids)
            self._supervised.append(row.supervised)
            self._lengths.append(len(row))
            self._examples.append(example)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ids.close()
        self._supervised.close()
        if kind is None:
            offsets = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)]).astype(np.int64)
            np.save(self._folder / f"{self._split}.offsets.npy", offsets, allow_pickle=False)
            np.save(self._folder / f"{self._split}.example.npy", np.array(self._examples, np.int64), allow_pickle=False)


def example_to_json(example: Example) -> str:
    """The example as one line of JSON, without the newline."""
    record: dict[str, Any] = {"messages": [message.to_template() for message in example.conversation.messages]}
    if example.conversation.tools:
        record["tools"] = list(example.conversation.tools)
    if example.reference != example.answer.content:
        record["reference"] = example.reference
    return jsonl.dumps({**record, "origin": example.origin, "group": example.group, "key": example.key})


def example_from_json(line: str | bytes) -> Example:
    """The example that `example_to_json` wrote."""
    record = json.loads(line)
    messages = tuple(_message(message) for message in record["messages"])
    return Example(
        conversation=Conversation(messages=messages, tools=tuple(record.get("tools", ()))),
        origin=record["origin"],
        group=record["group"],
        key=record["key"],
        reference=record.get("reference", messages[-1].content),
    )


def _message(fields: Mapping[str, Any]) -> Message:
    return Message(**{**fields, "tool_calls": tuple(fields.get("tool_calls", ()))})


def _open(path: Path) -> npt.NDArray[Any]:
    """The array, memory-mapped; an empty one cannot be mapped and is read."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r" if shape[0] else None, allow_pickle=False)
    return array


class _GrowingArray:
    """A one-dimensional .npy file written front to back, its length entered at the end (numpy pads headers for this)."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._file, self._dtype, self._length = path.open("w+b"), dtype, 0
        self._header()
        self._start = self._file.tell()

    def append(self, values: npt.NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._header()
        moved = self._file.tell() != self._start
        self._file.close()
        if moved:
            raise DataError(f"{self._file.name}: the array's header outgrew its place")

    def _header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        np.lib.format.write_array_header_1_0(self._file, {"descr": descr, "fortran_order": False, "shape": (self._length,)})

"""Strict JSON and JSON lines: what is written can be read by any parser, what is torn is borne."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSoFar:
    """Of a file that grows by lines, what was read so far; without more, nothing of any."""

    offset: int = 0
    """Bytes read, all of them whole lines."""
    file: tuple[int, int] | Literal["none"] = "none"
    """Device and inode: another file may take its place, as where a resumed run writes its metrics anew."""


Before = TypeVar("Before", bound=ReadSoFar)


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvaged(ReadSoFar):
    """The lines that can be read, and how many cannot."""

    records: list[dict[str, Any]] = field(default_factory=list)
    num_damaged: int = 0


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON text; a number that is not finite becomes null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record as one line, in one write. The torn last line of a writer that was killed is cut off first."""
    with path.open("ab+") as file:
        _cut_torn_line(file)
        file.write((dumps(record) + "\n").encode())


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file that Luthier appends to; a torn last line is passed over, any other bad line raises ValueError."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def record(line: bytes) -> dict[str, Any] | None:
    """The record that a line is, if it is one."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def salvage(path: Path) -> Salvaged:
    """What can be read of a file whatever has happened to it; a torn last line is no damage, and a file that is gone has no lines."""
    return salvage_on(path, Salvaged())


def salvage_on(path: Path, before: Salvaged) -> Salvaged:
    """The same with what was appended since; `before` itself where nothing was, all of it anew where another file has taken its place."""
    try:
        with opened_behind(path, before) as (file, before):
            more = salvaged(file.read())
    except FileNotFoundError:
        return Salvaged()
    if not more.offset:
        return before
    num_damaged = before.num_damaged + more.num_damaged
    return replace(before, records=before.records + more.records, num_damaged=num_damaged, offset=before.offset + more.offset)


@contextmanager
def opened_behind(path: Path, before: Before) -> Iterator[tuple[BinaryIO, Before]]:
    """A file, to be read on behind what was read of it, and that; from its beginning, behind nothing, where it is another or was cut.

    Raises FileNotFoundError.
    """
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        if (found.st_dev, found.st_ino) != before.file or found.st_size < before.offset:
            before = type(before)(file=(found.st_dev, found.st_ino))
        file.seek(before.offset)
        yield file, before


def salvaged(text: bytes) -> Salvaged:
    """`salvage` of what was read already."""
    *lines, torn = text.split(b"\n")
    records = [found for line in lines if (found := record(line)) is not None]
    return Salvaged(records=records, num_damaged=len(lines) - len(records), offset=len(text) - len(torn))


def _cut_torn_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    if file.read(1) not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

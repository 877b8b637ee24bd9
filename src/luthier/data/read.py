"""Rows from files: JSON lines, JSON, CSV, Parquet. What does not parse is a BadRow with its place, never a crash.

Bytes held: one line of JSON lines (at most 64 MB) or CSV, 1,000 rows of Parquet, the whole file of JSON. A JSON or Parquet file that is
broken has no rows to count, so it is an error whatever `on_bad_row` says.
"""

import csv
import difflib
import glob
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from luthier.core.errors import DataError
from luthier.data.rows import RawRow
from luthier.recipe.schema import Source

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""File types by suffix; all but Parquet may end in .gz as well."""

LONGEST_LINE = 2**26
"""Bytes of JSON lines that are taken for one row: a few kilobytes of .gz can hold a line that fills the memory."""

LONGEST_CSV_FIELD = 2**31 - 1
"""The csv module's own limit, 131,072 characters, is shorter than a long conversation."""

PARQUET_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A record that could not be read: where, and why."""

    file: str
    line: int
    detail: str

    @property
    def origin(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"


def files_of(source: Source) -> list[Path]:
    """The source's files, sorted; a path that stands for no file, or for one of another type, is an error."""
    path = Path(source.path)
    if path.is_dir():
        raise DataError("is a folder, not a file", where=source.path, change=f"write the files as a glob: `{path / '*.jsonl'}`")
    found = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(source.path, recursive=True) if Path(name).is_file())
    if not found:
        _nothing_found(path)
    for file in found:
        if _kind(file) not in KINDS:
            raise DataError(
                "is of no type that can be read",
                where=str(file),
                change=f"use {', '.join(KINDS)} (.gz too), or narrow the glob `{source.path}`",
            )
    return found


def read_rows(source: Source) -> Iterator[RawRow | BadRow]:
    """Every record of the source's files in order, blank lines passed over."""
    for path in files_of(source):
        yield from _read_file(path)


def _read_file(path: Path) -> Iterator[RawRow | BadRow]:
    try:
        match _kind(path):
            case ".jsonl" | ".ndjson":
                with _open(path) as file:
                    yield from _json_lines(str(path), file)
            case ".json":
                yield from _json(path)
            case ".csv":
                yield from _csv(path)
            case _:
                yield from _parquet(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), change="check the file's permissions, or make it anew") from error


def _json_lines(name: str, file: io.BufferedIOBase) -> Iterator[RawRow | BadRow]:
    for number in itertools.count(1):
        line = file.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield BadRow(file=name, line=number, detail=f"not a row: a line of more than {LONGEST_LINE:,} bytes")
            continue
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if content.strip():
            yield _record(name, number, content)


def _record(file: str, number: int, line: bytes) -> RawRow | BadRow:
    try:
        fields = _strict_json(line)
    except UnicodeDecodeError as error:
        return BadRow(file=file, line=number, detail=f"not UTF-8: byte {error.start + 1} of the line is 0x{line[error.start]:02x}")
    except json.JSONDecodeError as error:
        return BadRow(file=file, line=number, detail=f"not JSON: {error.msg} (character {error.pos + 1})")
    except ValueError as error:
        return BadRow(file=file, line=number, detail=f"not JSON: {error}")
    except RecursionError:
        return BadRow(file=file, line=number, detail="not a row: nested too deeply")
    return _row(file, number, fields)


def _row(file: str, number: int, fields: Any) -> RawRow | BadRow:
    if isinstance(fields, dict):
        return RawRow(file=file, line=number, fields=fields)
    return BadRow(file=file, line=number, detail=f"not a row: found a JSON {_json_type(fields)}, expected an object {{…}}")


def _json(path: Path) -> Iterator[RawRow | BadRow]:
    with _open(path) as file:
        content = file.read().removeprefix(b"\xef\xbb\xbf")
    try:
        value = _strict_json(content)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # many .json files hold JSON lines
            yield from _json_lines(str(path), io.BytesIO(content))
            return
        change = "mend the file; rows that stand one to a line belong in .jsonl"
        raise DataError(f"not JSON: {error.msg}", where=f"{path}:{error.lineno}", change=change) from error
    except (ValueError, RecursionError) as error:
        change = "write it as UTF-8, its numbers finite, its values not nested too deeply"
        raise DataError(f"not JSON: {error}", where=str(path), change=change) from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(
            f"found a JSON {_json_type(value)}, expected a list of rows",
            where=str(path),
            change='write [{…}, {…}] or {"data": [{…}, {…}]}, or one row to a line in .jsonl',
        )
    for number, fields in enumerate(rows, start=1):
        yield _row(str(path), number, fields)


def _strict_json(content: bytes) -> Any:
    """The value; NaN, Infinity and half surrogate pairs, which Python's parser lets through, are ValueErrors."""
    value = json.loads(content.decode("utf-8"), parse_constant=_not_finite)
    if b"\\ud" in content or b"\\uD" in content:
        json.dumps(value, ensure_ascii=False).encode("utf-8", "strict")  # UnicodeEncodeError is a ValueError
    return value


def _not_finite(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not a JSON number")


def _csv(path: Path) -> Iterator[RawRow | BadRow]:
    csv.field_size_limit(LONGEST_CSV_FIELD)
    with _open(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        records = _csv_records(file)
        line, header = next(records, (1, []))
        if isinstance(header, str) or not _is_utf8("".join(header)):
            raise DataError("the header is not CSV in UTF-8", where=f"{path}:{line}", change="name the columns in the first line")
        _refuse_twins(header, f"{path}:{line}")
        for line, values in records:
            if isinstance(values, str):
                yield BadRow(file=str(path), line=line, detail=values)
            elif values:
                yield _csv_row(str(path), line, header, values)


def _csv_records(file: Iterable[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Records with the line they begin on; text instead of values says what is wrong with one."""
    reader = csv.reader(file, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            num_lines = reader.line_num - line + 1
            yield line, f"not CSV: {error}" + (f"; a quote that is not closed takes in {num_lines} lines" if num_lines > 1 else "")


def _csv_row(file: str, line: int, header: list[str], values: list[str]) -> RawRow | BadRow:
    if len(values) != len(header):
        return BadRow(file=file, line=line, detail=f"found {len(values)} values, expected {len(header)} as in the header")
    if not _is_utf8("".join(values)):
        return BadRow(file=file, line=line, detail="not UTF-8")
    return RawRow(file=file, line=line, fields=dict(zip(header, values, strict=True)))


def _refuse_twins(names: list[str], where: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"two columns are called `{twice[0]}`", where=where, change="give each column its own name")


def _is_utf8(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parquet(path: Path) -> Iterator[RawRow | BadRow]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise DataError("reading Parquet needs pyarrow", where=str(path), change="pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _refuse_twins(names, str(path))
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                columns = [[_without_nulls(value) for value in column.to_pylist()] for column in batch.columns]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield RawRow(file=str(path), line=number, fields=dict(zip(names, values, strict=True)))
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # text that is not UTF-8, a year 300,000
        raise DataError(f"not Parquet: {error}", where=str(path), change="make the file anew") from error


def _without_nulls(value: Any) -> Any:
    """Parquet gives every object every key, null where it had none; dropped, so that rows are those of JSON."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _kind(path: Path) -> str:
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return "" if path.suffix == ".gz" and kind == ".parquet" else kind.lower()


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")


def _nothing_found(path: Path) -> NoReturn:
    folder = path.parent
    while "*" in str(folder) or "?" in str(folder) or "[" in str(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise DataError("there is no such folder", where=str(folder), change=f"the source's path is `{path}`; it is relative to the recipe")
    names = sorted(item.name for item in folder.iterdir() if _kind(item) in KINDS)
    near = difflib.get_close_matches(path.name, names, n=1) or names[:1]
    change = f"did you mean `{near[0]}`?" if near else "the folder holds no data file"
    raise DataError(f"no file matches `{path.name}` in {folder}", where=str(path), change=change)

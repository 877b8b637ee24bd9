"""Rows come from every kind of file, and no broken line stops the reading."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from luthier.core.errors import DataError
from luthier.data.read import BadRow, files_of, read_rows
from luthier.data.rows import RawRow
from luthier.recipe.schema import Source

ROWS = [{"prompt": "Wie geht's?", "response": "Gut, 你好 🎻"}, {"prompt": 'a,b\n"c"', "response": "two\nlines"}]


def read(path: Path | str) -> list[RawRow | BadRow]:
    return list(read_rows(Source(path=str(path))))


def fields(path: Path | str) -> list[dict[str, object]]:
    rows = read(path)
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [dict(row.fields) for row in rows if isinstance(row, RawRow)]


def bad(path: Path) -> list[tuple[int, str]]:
    return [(row.line, row.detail) for row in read(path) if isinstance(row, BadRow)]


def lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_csv(path: Path) -> None:
    path.write_text('prompt,response\nWie geht\'s?,"Gut, 你好 🎻"\n"a,b\n""c""","two\nlines"\n', encoding="utf-8-sig")


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    (tmp_path / "b.ndjson").write_text(lines(ROWS).replace("\n", "\r\n"))
    (tmp_path / "c.json").write_text(json.dumps(ROWS))
    (tmp_path / "d.json").write_text(json.dumps({"data": ROWS}))
    (tmp_path / "lines.json").write_text(lines(ROWS))
    write_csv(tmp_path / "e.csv")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "f.parquet")
    with gzip.open(tmp_path / "g.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines(ROWS))
    for path in sorted(tmp_path.iterdir()):
        assert fields(path) == ROWS, path.name


def test_a_row_knows_its_file_and_line_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n\n  \n{"a": 2}')
    assert [row.origin for row in read(path)] == [f"{path}:2", f"{path}:5"]
    table = tmp_path / "rows.csv"
    table.write_text('a,b\n"one\nand a half",1\n\ntwo,2\n')
    assert [row.line for row in read(table)] == [2, 5]


def test_a_byte_order_mark_is_borne(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", '{"a": "1"}\n'), ("b.json", '[{"a": "1"}]'), ("c.csv", "a\n1\n")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert fields(tmp_path / name) == [{"a": "1"}]


def test_lines_that_do_not_parse_are_bad_rows_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"a": 1}\n{"a": \n[1, 2]\n{"a": NaN}\n{"a": "\xff"}\n"text"\n{"a": "\\ud800"}\n'
        + b'{"a": ' * 100_000
        + b'\n{"a": -Infinity}\n{"a": 2}\n'
    )
    rows = read(path)
    assert [type(row) for row in rows] == [RawRow] + [BadRow] * 8 + [RawRow]
    details = dict(bad(path))
    assert details[2].startswith("not JSON: Expecting value")
    assert details[3] == "not a row: found a JSON list, expected an object {…}"
    assert "NaN" in details[4]
    assert details[5] == "not UTF-8: byte 8 of the line is 0xff"
    assert "surrogates" in details[7]
    assert "nested too deeply" in details[8]
    assert all(row.line == number for number, row in enumerate(rows, start=1))


def test_an_escaped_emoji_is_no_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "\\ud83c\\udfbb"}\n')
    assert fields(path) == [{"a": "🎻"}]


def test_csv_rows_that_do_not_fit_the_header_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1\n1,2,3\n"x"y,2\n\xff,2\n3,4\n"open,5\n6,7\n')
    assert bad(path) == [
        (2, "found 1 values, expected 2 as in the header"),
        (3, "found 3 values, expected 2 as in the header"),
        (4, "not CSV: ',' expected after '\"'"),
        (5, "not UTF-8"),
        (7, "not CSV: unexpected end of data; a quote that is not closed takes in 2 lines"),
    ]
    assert [row.fields for row in read(path) if isinstance(row, RawRow)] == [{"a": "3", "b": "4"}]


def test_a_csv_field_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "x" * 200_000 + ",2\n")
    assert len(str(fields(path)[0]["a"])) == 200_000


def test_parquet_messages_have_the_keys_that_json_would_give_them(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages, "note": None}]), path)
    assert fields(path) == [
        {
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [{"function": {"name": "look"}}]}],
            "note": None,
        }
    ]


def test_parquet_rows_are_counted_over_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": list(range(2500))}), path, row_group_size=700)
    assert [(row.line, row.fields["a"]) for row in read(path) if isinstance(row, RawRow)] == [(n + 1, n) for n in range(2500)]


def test_a_glob_gives_its_files_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    assert [path.stem for path in files_of(Source(path=str(tmp_path / "*.jsonl")))] == ["a", "b", "c"]


def test_a_path_with_brackets_in_its_name_is_a_file_first(tmp_path: Path) -> None:
    path = tmp_path / "rows[1].jsonl"
    path.write_text("{}\n")
    assert files_of(Source(path=str(path))) == [path]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("rows.json", "did you mean `rows.jsonl`?"),
        ("*.csv", "no file matches `*.csv` in "),
        ("nowhere/*.jsonl", "there is no such folder"),
        (".", "is a folder"),
        ("*", "of no type that can be read"),
    ],
)
def test_a_path_without_data_says_what_to_change(tmp_path: Path, pattern: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError) as error:
        files_of(Source(path=str(tmp_path / pattern)))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'[{"a": 1},\n {"a": }]', "a.json:2: not JSON"),
        ("a.json", b'{"rows": 1}', "found a JSON object, expected a list of rows"),
        ("a.json", b'[{"a": NaN}]', "NaN is not a JSON number"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.parquet", b"no parquet at all", "not Parquet"),
        ("a.jsonl.gz", b"no gzip at all", "cannot be read"),
        ("a.csv", b"a,b,a\n1,2,3\n", "two columns are called `a`"),
        ("a.csv", b'"a\n1\n', "the header is not CSV in UTF-8"),
    ],
)
def test_a_file_that_is_broken_as_a_whole_is_an_error_not_a_row(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read(tmp_path / name)
    assert said in str(error.value)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / name).write_text("")
        assert read(tmp_path / name) == []

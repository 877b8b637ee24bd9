"""Token rows come back from disk as they were written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from luthier.core.chat import Conversation
from luthier.data.rows import Example
from luthier.data.store import RowWriter, TokenRow, TokenRows, example_from_json, example_to_json
from tests.data.families import CALL, SYSTEM, WEATHER, WITH_TOOLS


def row(*ids: int) -> TokenRow:
    """A row whose even tokens are trained on, the first excepted."""
    array = np.array(ids, np.int32)
    supervised = array % 2 == 0
    supervised[0] = False
    return TokenRow(ids=array, supervised=supervised)


def test_rows_come_back_with_lengths_and_counts(tmp_path: Path) -> None:
    written = [row(2, 4, 5), row(1, 3), row(7, 8, 10, 12)]
    with RowWriter(tmp_path, "train") as writer:
        writer.add(written[:2], example=0)
        writer.add([], example=1)
        writer.add(written[2:], example=2)
    rows = TokenRows(tmp_path, "train")
    assert len(rows) == 3
    assert [(item.ids.tolist(), item.supervised.tolist()) for item in rows] == [
        (item.ids.tolist(), item.supervised.tolist()) for item in written
    ]
    assert rows.lengths.tolist() == [3, 2, 4]
    assert rows.num_supervised.tolist() == [1, 0, 3]
    assert rows.example_index.tolist() == [0, 0, 2]
    assert (rows.lengths.dtype, rows.num_supervised.dtype, rows[0].ids.dtype, rows[0].supervised.dtype) == (
        np.int32,
        np.int32,
        np.int32,
        np.bool_,
    )


def test_rows_are_mapped_not_read(tmp_path: Path) -> None:
    with RowWriter(tmp_path, "train") as writer:
        writer.add([row(*range(1000))], example=0)
    assert isinstance(TokenRows(tmp_path, "train")[0].ids.base, np.memmap)


def test_the_arrays_are_plain_numpy_files(tmp_path: Path) -> None:
    with RowWriter(tmp_path, "train") as writer:
        for _ in range(1000):
            writer.add([row(1, 2, 3)], example=0)
    assert np.load(tmp_path / "train.ids.npy").shape == (3000,)


def test_a_split_without_rows_is_empty(tmp_path: Path) -> None:
    with RowWriter(tmp_path, "test"):
        pass
    rows = TokenRows(tmp_path, "test")
    assert (len(rows), rows.lengths.tolist(), list(rows)) == (0, [], [])


@pytest.mark.parametrize("index", [1, -1])
def test_a_row_that_is_not_there_is_an_error(tmp_path: Path, index: int) -> None:
    with RowWriter(tmp_path, "train") as writer:
        writer.add([row(1, 2)], example=0)
    with pytest.raises(IndexError, match=f"row {index} of 1"):
        TokenRows(tmp_path, "train")[index]


def test_rows_of_a_writer_that_failed_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RowWriter(tmp_path, "train") as writer:
        writer.add([row(1, 2)], example=0)
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError):
        TokenRows(tmp_path, "train")


def test_an_example_comes_back_from_its_line() -> None:
    conversation = Conversation(messages=(SYSTEM, *WITH_TOOLS), tools=(WEATHER,))
    written = Example(conversation=conversation, origin="a.jsonl:3", group="é", key="k", reference="yes")
    assert example_from_json(example_to_json(written)) == written
    assert example_from_json(example_to_json(written)).conversation.messages[2].tool_calls == (CALL,)
    other = replace(written, reference="no")
    assert example_from_json(example_to_json(other)) == other

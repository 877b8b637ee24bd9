"""Tensors in pieces: what one set of ranks wrote another reads, and no more than it needs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from luthier.core.errors import RunError
from luthier.model.mesh import Piece
from luthier.train.boxes import Held, Writer, names_of, opened, write

WHOLE = torch.arange(7 * 6, dtype=torch.float32).view(7, 6)
QUARTERS = {(0, 0): (4, 3), (0, 3): (4, 3), (4, 0): (3, 3), (4, 3): (3, 3)}
"""Where each of four boxes begins, and its size: replicas divided rows, tensor parallelism columns."""


def piece(offsets: tuple[int, int], sizes: tuple[int, int]) -> Held:
    """A box of WHOLE."""
    (row, column), (rows, columns) = offsets, sizes
    return Held(tensor=WHOLE[row : row + rows, column : column + columns].clone(), piece=Piece(shape=(7, 6), offsets=offsets))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """WHOLE by four ranks, and a number that only the first writes."""
    for index, (offsets, sizes) in enumerate(QUARTERS.items()):
        one = {"step/a": Held.whole(torch.tensor(5.0))} if not index else {}
        write(tmp_path / Writer(index=index, count=4).name("adapter"), {"a": piece(offsets, sizes), **one})
    return tmp_path


@pytest.mark.parametrize(
    ("offsets", "sizes"), [((0, 0), (7, 6)), ((0, 0), (7, 2)), ((3, 1), (2, 4)), ((6, 5), (1, 1)), ((7, 0), (0, 6)), *QUARTERS.items()]
)
def test_any_box_is_put_together_from_those_that_were_written(written: Path, offsets: tuple[int, int], sizes: tuple[int, int]) -> None:
    wanted = Held(tensor=torch.full(sizes, torch.nan), piece=Piece(shape=(7, 6), offsets=offsets))
    with opened(written, "adapter") as found:
        assert (found.shape("a"), found.shape("step/a")) == ((7, 6), ())
        found.read("a", wanted)
    assert torch.equal(wanted.tensor, piece(offsets, sizes).tensor)


def test_one_writer_writes_a_plain_file(tmp_path: Path) -> None:
    tensors = {"a": Held.whole(WHOLE), "step/a": Held.whole(torch.tensor(5.0))}
    write(tmp_path / Writer().name("adapter"), tensors)
    save_file({name: held.tensor for name, held in tensors.items()}, tmp_path / "plain.safetensors")
    assert (tmp_path / "adapter.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    wanted = Held(tensor=torch.empty(()), piece=Piece(shape=(), offsets=()))
    with opened(tmp_path, "adapter") as found:
        found.read("step/a", wanted)
    assert wanted.tensor == 5


def test_numbers_that_nobody_wrote_are_missed(written: Path) -> None:
    (written / "adapter-00004-of-00004.safetensors").unlink()
    write(written / "adapter-00004-of-00004.safetensors", {"b": Held.whole(WHOLE)})
    with opened(written, "adapter") as found, pytest.raises(RunError, match="of a, 33 of 42 numbers are there"):
        found.read("a", Held.whole(torch.empty(7, 6)))


def test_files_belong_together_by_the_number_in_their_names() -> None:
    pair = {"adapter-00001-of-00002.safetensors", "adapter-00002-of-00002.safetensors"}
    assert names_of("adapter", ["adapter-00002-of-00002.safetensors", "optimizer-00001-of-00001.safetensors", "state.json"]) == pair
    assert names_of("adapter", ["state.json"]) == {"adapter.safetensors"}


@pytest.mark.parametrize(
    "boxes",
    [
        "",
        "3",
        "[" * 10_000,
        '{"a": null}',
        '{"a": {"shape": [7, 6]}}',
        '{"a": {"shape": [7, 6], "offsets": [0]}}',
        '{"a": {"shape": [7, 6], "offsets": [0, "x"]}}',
        '{"a": {"shape": [7, 6], "offsets": [0, -1]}}',
        '{"a": {"shape": [6, 6], "offsets": [0, 0]}}',
    ],
)
def test_boxes_that_are_none_are_refused(tmp_path: Path, boxes: str) -> None:
    save_file({"a": WHOLE}, tmp_path / "adapter.safetensors", {"boxes": boxes})
    with pytest.raises(RunError, match="not a safetensors file"), opened(tmp_path, "adapter"):
        pass
    save_file({"a": WHOLE}, tmp_path / "adapter.safetensors", {"boxes": json.dumps({"a": {"shape": [8, 6], "offsets": [1, 0]}})})
    with opened(tmp_path, "adapter") as found:
        assert found.shape("a") == (8, 6)

"""Named tensors in safetensors files: whole ones, or the boxes that ranks hold of them, which others read back as other boxes.

adapter.safetensors                 written by one process: every tensor whole
adapter-00001-of-00002.safetensors  written by the first of two ranks: its metadata has `boxes`, {NAME: {shape: of the whole, offsets}}, of
                                    those tensors that are a part of the whole; a second box of the same tensor is `NAME 2`

torch.distributed.checkpoint has the same, but keeps the boxes in a pickle (docs/notes/shards.md).
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from luthier.core.errors import RunError
from luthier.model.mesh import Piece

BOXES = "boxes"
SUFFIX = ".safetensors"
OTHER_NAME = "give the run another name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A tensor, or the box of it that this rank has and writes."""

    tensor: Tensor
    piece: Piece

    @classmethod
    def whole(cls, tensor: Tensor) -> "Held":
        """All of it."""
        return cls(tensor=tensor, piece=Piece(shape=tuple(tensor.shape), offsets=(0,) * tensor.ndim))

    @property
    def is_whole(self) -> bool:
        """Whether there is no more of it."""
        return tuple(self.tensor.shape) == self.piece.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """One of the ranks that write, or the only one."""

    index: int = 0
    count: int = 1

    def name(self, stem: str) -> str:
        """Of its file."""
        return f"{stem}{SUFFIX}" if self.count == 1 else f"{stem}-{self.index + 1:05d}-of-{self.count:05d}{SUFFIX}"


def names_of(stem: str, among: Iterable[str]) -> set[str]:
    """The files that belong together, as the numbers say in the name of any of them; the one of a single writer, where there is none."""
    counts = {int(found[1]) for name in among if (found := re.fullmatch(rf"{stem}-\d{{5}}-of-(\d{{5}}){re.escape(SUFFIX)}", name))}
    return {Writer(index=index, count=count).name(stem) for count in counts or {1} for index in range(count)}


def write(path: Path, tensors: Mapping[str, Held]) -> None:
    """Write them from where they lie."""
    boxes, places = dict[str, Tensor](), dict[str, dict[str, list[int]]]()
    for name, held in tensors.items():
        for number, (box, offsets) in enumerate(held.piece.boxes(held.tensor), 1):
            key = name if number == 1 else f"{name} {number}"
            boxes[key] = box.contiguous()
            if not held.is_whole:
                places[key] = {"shape": list(held.piece.shape), "offsets": list(offsets)}
    save_file(boxes, path, {BOXES: json.dumps(places)} if places else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    file: Any
    key: str
    """Its name in the file."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.shape) == len(self.offsets) == len(self.sizes):
            raise ValueError("a box has not the dimensions of its tensor")
        if any(not 0 <= at <= at + size <= all_ for at, size, all_ in zip(self.offsets, self.sizes, self.shape, strict=True)):
            raise ValueError("a box lies outside of its tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What lies in files that belong together."""

    folder: Path
    boxes: Mapping[str, tuple[_Box, ...]]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole tensor."""
        return self.boxes[name][0].shape

    def read(self, name: str, into: Held) -> None:
        """Fill what a rank holds from what was written, and read no more than that; raises RunError where that does not have all of it."""
        numbers = sum(self._read(name, box, offsets) for box, offsets in into.piece.boxes(into.tensor))
        if numbers != into.tensor.numel():
            raise RunError(f"of {name}, {numbers} of {into.tensor.numel()} numbers are there", where=str(self.folder), change=OTHER_NAME)

    def _read(self, name: str, into: Tensor, offsets: tuple[int, ...]) -> int:
        """Fill a box from those that were written; how many numbers were there."""
        numbers = 0
        for box in self.boxes[name]:
            begins = [max(have, want) for have, want in zip(box.offsets, offsets, strict=True)]
            ends = [
                min(have + held, want + wanted)
                for have, held, want, wanted in zip(box.offsets, box.sizes, offsets, into.shape, strict=True)
            ]
            if any(begin >= end for begin, end in zip(begins, ends, strict=True)):
                continue
            there = tuple(slice(begin - at, end - at) for begin, end, at in zip(begins, ends, box.offsets, strict=True))
            here = tuple(slice(begin - at, end - at) for begin, end, at in zip(begins, ends, offsets, strict=True))
            into[here] = box.file.get_slice(box.key)[there] if there else box.file.get_tensor(box.key)
            numbers += math.prod(end - begin for begin, end in zip(begins, ends, strict=True))
        return numbers


@contextmanager
def opened(folder: Path, stem: str) -> Iterator[Written]:
    """The files of a stem in a folder, without reading their tensors yet; raises RunError for what is none."""
    with ExitStack() as stack:
        boxes: dict[str, tuple[_Box, ...]] = {}
        for name in sorted(names_of(stem, (path.name for path in folder.iterdir()))):
            try:
                for tensor, box in _boxes(stack.enter_context(safe_open(folder / name, "pt"))):
                    boxes[tensor] = (*boxes.get(tensor, ()), box)
            except (
                SafetensorError,
                ValueError,
                KeyError,
                TypeError,
                RecursionError,
            ) as error:  # whole, and so never Luthier's
                raise RunError(f"not a safetensors file: {error}", where=str(folder / name), change=OTHER_NAME) from error
        yield Written(folder=folder, boxes=boxes)


def _boxes(file: Any) -> Iterator[tuple[str, _Box]]:
    parts = json.loads((file.metadata() or {}).get(BOXES, "{}"))
    for name in file.keys():  # noqa: SIM118  it is no mapping
        sizes = tuple(file.get_slice(name).get_shape())
        part = parts[name] if name in parts else {"shape": sizes, "offsets": (0,) * len(sizes)}
        whole = name.partition(" ")[0]
        yield whole, _Box(file=file, key=name, shape=tuple(map(int, part["shape"])), offsets=tuple(map(int, part["offsets"])), sizes=sizes)

"""The directions in which the processes of a run divide its work, and what of a parameter each of them holds.

data × pipeline × tensor: replicas take other rows, a pipeline's stages other layers, ranks along `tensor` other columns or rows of each
matrix. Ranks are numbered with `tensor` innermost, which speaks most, so that its ranks are neighbours on one machine, and data outermost.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from luthier.plan.setup import Layout

Direction = Literal["data", "pipeline", "tensor"]
DIRECTIONS: tuple[Direction, ...] = ("data", "pipeline", "tensor")
ROWS = -2


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One direction, as this rank sees it."""

    size: int = 1
    index: int = 0
    """Of this rank along it."""
    group: dist.ProcessGroup | None = field(default=None, repr=False)
    """The ranks that differ from this one only in it; None where it is alone."""
    waiting: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, repr=False)
    """Opened around every wait for them (`luthier.train.ranks.Ranks.waiting`)."""

    @property
    def first(self) -> bool:
        """Whether this rank is."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """Whether this rank is."""
        return self.index == self.size - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Where this rank stands. Without ranks beside it every axis has one."""

    data: Axis = Axis()
    pipeline: Axis = Axis()
    tensor: Axis = Axis()
    devices: DeviceMesh | None = field(default=None, repr=False)
    """The same as torch.distributed has it."""

    @classmethod
    def of(cls, layout: Layout, device: str, waiting: Callable[[], AbstractContextManager[None]] = nullcontext) -> "Mesh":
        """That of a layout, once the process group of all its ranks is there; `device` is cpu or cuda."""
        devices = init_device_mesh(device, tuple(getattr(layout, name) for name in DIRECTIONS), mesh_dim_names=DIRECTIONS)
        sizes = dict(zip(DIRECTIONS, devices.shape, strict=True))
        axes = {
            name: Axis(
                size=sizes[name],
                index=devices.get_local_rank(name),
                group=devices.get_group(name) if sizes[name] > 1 else None,
                waiting=waiting,
            )
            for name in DIRECTIONS
        }
        return cls(**axes, devices=devices)

    def axis(self, direction: Direction) -> Axis:
        """By its name."""
        return {"data": self.data, "pipeline": self.pipeline, "tensor": self.tensor}[direction]


UNDIVIDED = Mesh()
"""Of one process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What this rank holds of a trained parameter: a box of the whole tensor; or several, one below the other, where it is `packed`."""

    shape: tuple[int, ...]
    """Of the whole."""
    offsets: tuple[int, ...]
    """Where the box begins in each dimension; its size is the local tensor's."""
    divided: frozenset[Direction] = frozenset()
    """Directions in which other ranks hold other boxes, or none of it; along the others all hold the same."""
    partial: bool = False
    """Along `tensor` all hold the same numbers, and each has only a part of their gradient's sum."""
    packed: int = 1
    """Matrices that are one below the other in the whole, gate and up of experts, of each of which this rank has the same rows: the
    first's begin at `offsets`. Their rows are the last dimension but one."""

    def boxes(self, held: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """Of what this rank holds, each box and where it begins in the whole."""
        if self.packed == 1:
            yield held, self.offsets
            return
        *before, row, column = self.offsets
        for index, box in enumerate(held.chunk(self.packed, dim=ROWS)):
            yield box, (*before, row + index * self.shape[ROWS] // self.packed, column)


Pieces = Mapping[Tensor, Piece]
"""By parameter. Of one that is not in it, every rank holds the whole."""

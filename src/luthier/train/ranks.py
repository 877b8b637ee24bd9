"""The processes that train one model together: which rows each computes, and what they add up.

Replicas compute their shares of a step's rows; the ranks of one replica (`model/mesh.py`) divide the model. Losses, counts and gradients
are sums over all rows, so that every rank sees the same numbers, makes the same update and takes the same decisions.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import get_total_norm

from luthier.core.errors import NonFiniteError, RunError
from luthier.core.files import DiskError
from luthier.data.order import Indices, rank_shares
from luthier.data.store import Rows
from luthier.model.mesh import DIRECTIONS, UNDIVIDED, Direction, Mesh, Piece, Pieces
from luthier.model.peak import is_out_of_memory
from luthier.plan.setup import Layout

Value = TypeVar("Value")

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others: one may be saving, or answering its share of a task's rows. One that is dead is found at once."""
BUCKET_NUMBERS = 16 * 2**20
"""Numbers that gradients are copied together up to, and sent at once: 64 MB in float32."""
GLOO, NCCL = "gloo", "cpu:gloo,cuda:nccl"
"""Counts and decisions lie on the host and go through gloo, gradients through what their device has."""

FAILURES: dict[str, type[RunError]] = {kind.__name__: kind for kind in (DiskError, NonFiniteError, RunError)}
"""What all ranks raise where one does, the more special first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among `size` of them. Every method is called by all ranks, in the same order.

    Where another rank is gone, torch raises a RuntimeError, which is not what ended the run.
    """

    rank: int
    size: int
    mesh: Mesh = UNDIVIDED
    pieces: Pieces = field(default_factory=dict, repr=False, compare=False)
    """Of the trained parameters."""
    divided: bool = False
    """Whether they compute each layer together: one that fails leaves the others waiting for it."""
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    """Opened around every wait for the others, so that who looks at a rank's heartbeat knows whom to blame."""
    stop: Callable[[], bool] = bool
    """Asked before each micro batch: whether a signal wants this rank to end."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes what all have."""
        return self.rank == 0

    @property
    def speaks(self) -> bool:
        """Whether this rank tells what its replica has counted: the one of them that sees the loss."""
        return self.mesh.pipeline.last and self.mesh.tensor.first

    @property
    def each_whole(self) -> bool:
        """Whether every rank has the whole model, and goes through it whatever the others do."""
        return not self.divided and self.mesh.pipeline.size == 1

    @property
    def sharded(self) -> bool:
        """Whether replicas divide the model, and so compute each of their micro batches together."""
        return any("data" in piece.divided for piece in self.pieces.values())

    def stops(self) -> bool:
        """Whether this rank is to end before the next micro batch; of ranks that compute the same layers of it together, whether any is."""
        if not self.divided:
            return self.stop()
        asked = torch.tensor(float(self.stop()))
        for axis in (self.mesh.tensor, *([self.mesh.data] if self.sharded else [])):
            if axis.group is not None:  # other replicas have other numbers of micro batches, and stages take them at other times
                with self.waiting():
                    dist.all_reduce(asked, dist.ReduceOp.MAX, group=axis.group)
        return bool(asked)

    def share(self, rows: Rows, indices: Indices) -> Indices:
        """Those of the rows that this rank's replica computes; none where there are fewer rows than replicas."""
        return rank_shares(rows, indices, self.mesh.data.size)[self.mesh.data.index]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value, added up over the replicas, in float64: the same bits for all."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64) * self.speaks
        with self.waiting():
            dist.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def any(self, values: Sequence[bool]) -> list[bool]:
        """Each value, true where it is on any rank."""
        return [bool(largest) for largest in self.largest([float(value) for value in values])]

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of all ranks' values, each."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        with self.waiting():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        largest: list[float] = found.tolist()
        return largest

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up each parameter's gradient over the ranks that have a part of it: all have it then, or none where none had.

        What replicas divide is summed already (`luthier.model.shard`).
        """
        trained = list(parameters)
        partial = [parameter for parameter in trained if (piece := self.pieces.get(parameter)) and piece.partial]
        self._sum_along(self.mesh.tensor.group, partial)
        self._sum_along(self.mesh.data.group, [parameter for parameter in trained if "data" not in self._divided(parameter)])

    def norm(self, parameters: Iterable[Tensor]) -> Tensor:
        """Of the whole gradient, in float32: each number counts once, on the first of the ranks that hold it."""
        trained = list(parameters)
        held = [parameter for parameter in trained if parameter.grad is not None]
        if not self.pieces:
            return get_total_norm([parameter.grad for parameter in held if parameter.grad is not None])
        own = [parameter.grad for parameter in held if parameter.grad is not None and self.owns(parameter)]
        squared = get_total_norm(own).to(trained[0].device).double().square()  # of no gradient it lies on the host
        with self.waiting():
            dist.all_reduce(squared)
        return squared.sqrt().float()

    def piece(self, parameter: Tensor) -> Piece:
        """What this rank holds of it."""
        return self.pieces.get(parameter) or Piece(shape=tuple(parameter.shape), offsets=(0,) * parameter.ndim)

    def owns(self, parameter: Tensor) -> bool:
        """Whether this is the first of the ranks that hold the same numbers of it."""
        return all(self.mesh.axis(direction).first for direction in DIRECTIONS if direction not in self._divided(parameter))

    def _divided(self, parameter: Tensor) -> frozenset[Direction]:
        return self.pieces[parameter].divided if parameter in self.pieces else frozenset()

    def _sum_along(self, group: dist.ProcessGroup | None, trained: Sequence[Tensor]) -> None:
        if group is None or not trained:
            return
        present = torch.tensor([float(parameter.grad is not None) for parameter in trained])
        with self.waiting():
            dist.all_reduce(present, group=group)
        for bucket in _buckets(parameter for parameter, ranks in zip(trained, present.tolist(), strict=True) if ranks):
            gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in bucket]
            flat = torch.cat([gradient.flatten() for gradient in gradients]) if len(bucket) > 1 else gradients[0].contiguous()
            with self.waiting():
                dist.all_reduce(flat, group=group)
            summed = torch.split(flat, [parameter.numel() for parameter in bucket]) if len(bucket) > 1 else (flat,)
            for parameter, gradient in zip(bucket, summed, strict=True):
                parameter.grad = gradient.view_as(parameter)

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Around what all ranks do: where it fails on one, with its run, its disk or its memory, it fails on all of them."""
        failed: Exception | None = None
        try:
            yield
        except (RunError, MemoryError, OSError, RuntimeError) as error:
            if self.size == 1 or not (isinstance(error, RunError) or is_out_of_memory(error)):
                raise
            failed = error
        told = self.every([] if failed is None else _words(failed))
        if failed is not None:
            raise failed
        for kind, what, where, change in filter(None, told):
            raise FAILURES[kind](what, where=where, change=change) if kind in FAILURES else MemoryError(what)

    def same(self, value: Value) -> Value:
        """Rank 0's value, for all: anything that JSON can hold."""
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.first else b""
        length = torch.tensor([len(text)])
        with self.waiting():
            dist.broadcast(length, src=0)
            sent = torch.frombuffer(bytearray(text), dtype=torch.uint8) if self.first else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(sent, src=0)
        told: Value = json.loads(bytes(sent.numpy()))
        return told

    def by_first(self, work: Callable[[], Value]) -> Value:
        """What the first rank's work gives, for all: anything that JSON can hold. Where it fails there, it fails on all of them."""
        found: list[Value] = []
        with self.agreeing():
            if self.first:
                found.append(work())
        (value,) = self.same(found)
        return value

    def every(self, value: Value) -> list[Value]:
        """All ranks' values, by rank, for all: anything that JSON can hold."""
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self.waiting():
            dist.all_gather(lengths, torch.tensor([len(text)]))
            longest = int(max(lengths))
            sent = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(sent, torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8))
        return [json.loads(bytes(each.numpy())) for each in sent]


ALONE = Ranks(rank=0, size=1)
"""One process: nothing is sent."""


def join(layout: Layout, waiting: Callable[[], AbstractContextManager[None]] = nullcontext) -> Ranks:
    """This process among those that torchrun started, once all are there; its GPU is set, or its part of the processor's threads."""
    rank, size, place = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if torch.cuda.is_available():
        torch.cuda.set_device(place)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group(NCCL if torch.cuda.is_available() else GLOO, timeout=PATIENCE)
    mesh = Mesh.of(layout, "cuda" if torch.cuda.is_available() else "cpu", waiting)
    return Ranks(rank=rank, size=size, mesh=mesh, divided=layout.divided, waiting=waiting)


def part(ranks: Ranks) -> None:
    """End the connection, once all have done their work."""
    if ranks.size > 1:
        ranks.sum([0.0])
        dist.destroy_process_group()


def _words(failed: Exception) -> list[str]:
    """A failure, for the ranks that did not have it."""
    if isinstance(failed, RunError):
        kind = next(name for name, kind in FAILURES.items() if isinstance(failed, kind))
        return [kind, failed.what, failed.where, failed.change]
    return ["MemoryError", "another rank had no memory", "", ""]


def _buckets(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in their order, in runs of one type and device and at most BUCKET_NUMBERS, or of one."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        if bucket and (
            (parameter.dtype, parameter.device) != (bucket[0].dtype, bucket[0].device)
            or sum(map(Tensor.numel, bucket)) + parameter.numel() > BUCKET_NUMBERS
        ):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket

"""The processes that train one model together: which rows each computes, and what they add up.

Each rank holds the whole model and computes its share of a step's rows. Losses, counts and gradients are sums over all of them, so that
every rank sees the same numbers, makes the same update and takes the same decisions. Only rank 0 writes into the run folder.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from luthier.data.order import Indices, rank_shares
from luthier.data.store import TokenRows

Value = TypeVar("Value")

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others: rank 0 may be saving, or answering a task's rows. A rank that is dead is found at once."""
BUCKET_NUMBERS = 16 * 2**20
"""Numbers that gradients are copied together up to, and sent at once: 64 MB in float32."""
GLOO, NCCL = "gloo", "cpu:gloo,cuda:nccl"
"""Counts and decisions lie on the host and go through gloo, gradients through what their device has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among `size` of them. Every method is called by all ranks, in the same order.

    Where another rank is gone, torch raises a RuntimeError, which is not what ended the run.
    """

    rank: int
    size: int
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    """Opened around every wait for the others, so that who looks at a rank's heartbeat knows whom to blame."""
    stop: Callable[[], bool] = bool
    """Asked before each micro batch: whether a signal wants this rank to end."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def share(self, rows: TokenRows, indices: Indices) -> Indices:
        """Those of the rows that this rank computes; none where there are fewer than ranks."""
        return rank_shares(rows, indices, self.size)[self.rank]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value, added up over the ranks, in float64: the same bits for all."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        with self.waiting():
            dist.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def largest(self, value: float) -> float:
        """The largest of the ranks' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64)
        with self.waiting():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.item()

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up each parameter's gradient over the ranks that have one: all have it then, or none where none had."""
        if self.size == 1:
            return
        trained = list(parameters)
        anywhere = self.sum([float(parameter.grad is not None) for parameter in trained])
        for bucket in _buckets(parameter for parameter, ranks in zip(trained, anywhere, strict=True) if ranks):
            gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in bucket]
            flat = torch.cat([gradient.flatten() for gradient in gradients]) if len(bucket) > 1 else gradients[0].contiguous()
            with self.waiting():
                dist.all_reduce(flat)
            summed = torch.split(flat, [parameter.numel() for parameter in bucket]) if len(bucket) > 1 else (flat,)
            for parameter, gradient in zip(bucket, summed, strict=True):
                parameter.grad = gradient.view_as(parameter)

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


ALONE = Ranks(rank=0, size=1)
"""One process: nothing is sent."""


def join(waiting: Callable[[], AbstractContextManager[None]] = nullcontext) -> Ranks:
    """This process among those that torchrun started, once all are there; its GPU is set, or its part of the processor's threads."""
    rank, size, place = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if torch.cuda.is_available():
        torch.cuda.set_device(place)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group(NCCL if torch.cuda.is_available() else GLOO, timeout=PATIENCE)
    return Ranks(rank=rank, size=size, waiting=waiting)


def part(ranks: Ranks) -> None:
    """End the connection, once all have done their work."""
    if ranks.size > 1:
        ranks.sum([0.0])
        dist.destroy_process_group()


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

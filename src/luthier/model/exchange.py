"""What ranks that divide a layer send each other, forward and backward: what the one direction takes apart the other puts together.

`enter` and `added` are f and g of Shoeybi et al. 2019 (arXiv 1909.08053, figure 3). What is whole is the same on all ranks.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.model.mesh import Axis


def enter(x: Tensor, axis: Axis) -> Tensor:
    """x, whole, for layers that are divided by columns: each rank finds a part of its gradient."""
    return _Enter.apply(x, axis)  # type: ignore[no-any-return, no-untyped-call]


def added(part: Tensor, axis: Axis) -> Tensor:
    """What layers that are divided by rows have computed, added up: each part has the sum's gradient."""
    return _Added.apply(part, axis)  # type: ignore[no-any-return, no-untyped-call]


def gather(columns: Tensor, axis: Axis) -> Tensor:
    """All outputs of a layer that is divided by columns."""
    return _Gathered.apply(columns, axis)  # type: ignore[no-any-return, no-untyped-call]


def part(x: Tensor, axis: Axis) -> Tensor:
    """Of x, whole, this rank's inputs of a layer that is divided by rows."""
    return _Part.apply(x, axis)  # type: ignore[no-any-return, no-untyped-call]


def add_(part: Tensor, axis: Axis) -> Tensor:
    """All ranks' parts added up, in place, without autograd; contiguous."""
    with _waiting(part, axis):
        dist.all_reduce(part, group=axis.group)
    return part


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return add_(_copied(grad), ctx.axis), None


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, axis: Axis) -> Tensor:
        return add_(_copied(part), axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _side_by_side(columns, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _own(grad, ctx.axis), None


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _copied(_own(x, axis))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _side_by_side(grad, ctx.axis), None


def _copied(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _own(whole: Tensor, axis: Axis) -> Tensor:
    """This rank's columns."""
    return whole.chunk(axis.size, dim=-1)[axis.index]


def _side_by_side(columns: Tensor, axis: Axis) -> Tensor:
    """All ranks' columns."""
    columns = columns.contiguous()
    found = [torch.empty_like(columns) for _ in range(axis.size)]
    with _waiting(columns, axis):
        dist.all_gather(found, columns, group=axis.group)
    return torch.cat(found, dim=-1)


def _waiting(sent: Tensor, axis: Axis) -> AbstractContextManager[None]:
    """For the others, as who looks at the heartbeat sees; not on a GPU, whose collectives return before they are done."""
    return axis.waiting() if sent.is_cpu else nullcontext()

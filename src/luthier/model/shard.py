"""Replicas that divide what they would all hold: torch's FSDP2, layer by layer (ZeRO, arXiv:1910.02054; FSDP, 2304.11277).

zero2   Gradients and optimizer state are divided. What is trained is whole from a micro batch's forward to its backward, what is frozen
        always.
zero3   All weights are divided, and a layer's are put together while it is computed: in the forward pass, and again in the backward.

The parameters of the modules are FSDP's. The loop has what this rank updates: plain tensors in the memory of FSDP's, which get their
gradients, summed over the replicas, in the backward pass of each micro batch: no more than its share of them is ever kept.
"""

import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier.core.errors import PlanRefused
from luthier.model.adapt import base_of
from luthier.model.mesh import ROWS, Axis, Mesh, Piece, Pieces

Value = TypeVar("Value")


def shard(
    model: PreTrainedModel | PeftModel, how: Literal["zero2", "zero3"], mesh: Mesh, pieces: Pieces
) -> tuple[dict[str, nn.Parameter], dict[Tensor, Piece]]:
    """Divide a model among the replicas; what this rank updates, by name, and which pieces those are. `pieces` are what it held before."""
    base = base_of(model)
    whole = {name: (parameter.shape, pieces.get(parameter)) for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = {parameter for parameter in model.parameters() if not parameter.requires_grad and (how == "zero2" or model is base)}
    for unit in _units(base):
        divided = fully_shard(
            unit,
            mesh=cast(Any, mesh.devices)["data"],
            reshard_after_forward=how == "zero3",
            shard_placement_fn=lambda parameter: Shard(_dimension(parameter.shape, pieces.get(parameter), mesh.data)),
            ignored_params=kept,
        )
        for module in divided:
            module.set_gradient_divide_factor(1.0)  # the loss is already divided by the count of all ranks
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
            if base.device.type == "cpu":  # gloo waits in the call; NCCL returns from it, and the device waits
                module.set_custom_all_gather(cast(Any, _Sent(axis=mesh.data, send=dist.all_gather_single)))
                module.set_custom_reduce_scatter(cast(Any, _Sent(axis=mesh.data, send=dist.reduce_scatter_single)))
    base.within = types.MethodType(lambda _, compute: compute(), base)
    register_fsdp_forward_method(base, "within")
    # A fused layer's output is a view, which nobody writes to
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    parameters = {name: cast(DTensor, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = {name: _local(parameter) for name, parameter in parameters.items()}
    return trained, {trained[name]: _piece(shape, before, mesh.data) for name, (shape, before) in whole.items()}


def _units(base: PreTrainedModel) -> Iterator[list[nn.Module]]:
    """Modules whose weights are put together at once: each layer, the embedding, the head, and last what is left."""
    yield from ([module] for module in base.modules() if isinstance(module, GradientCheckpointingLayer))
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    tied = {*embedding.parameters()} & {*head.parameters()}
    yield from ([[embedding, head]] if tied else [[embedding], [head]])
    yield [base]


def within(base: nn.Module, compute: Callable[[], Value]) -> Value:
    """compute(), which goes past the forward of `base` to parts of it, while the weights that belong to no layer are whole."""
    if not isinstance(base, FSDPModule):
        return compute()
    computed: Value = cast(Any, base).within(compute)
    return computed


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """While what a frozen module has is looked at, past its forward."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients; then each module in the mode that it was in, and nothing is whole that is divided.

    Not torch's inference mode: its tensors could not be trained with, where weights are put together in it for the first time.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # or it would go on with these weights when others are loaded


def class_of(module: nn.Module) -> type[nn.Module]:
    """Its class, under the one that FSDP makes of it."""
    return type(module).__mro__[2] if isinstance(module, FSDPModule) else type(module)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """One of FSDP's ways to send; who looks at the rank's heartbeat sees that it waits."""

    axis: Axis
    send: Callable[..., dist.Work | None]

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What is sent, or comes."""
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, **options: Any) -> dist.Work | None:
        with self.axis.waiting():
            return self.send(output_tensor, input_tensor, **options)


def _local(parameter: DTensor) -> nn.Parameter:
    """This rank's piece in the same memory; its gradient comes to it after each backward pass."""
    local = nn.Parameter(cast(DTensor, parameter.detach()).to_local())

    def take(_: Tensor) -> None:
        gradient = cast(DTensor, parameter.grad).to_local()
        local.grad = gradient if local.grad is None else local.grad.add_(gradient)
        parameter.grad = None

    parameter.register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]
    return local


def _dimension(shape: torch.Size, before: Piece | None, data: Axis) -> int:
    """The first that replicas can divide evenly, or else the first of all, of which the last ranks get less, or nothing.

    Of what is packed never the rows: a part of them would be no boxes. Raises PlanRefused where nothing else can be divided.
    """
    packed = before is not None and before.packed > 1
    possible = [dimension for dimension in range(len(shape)) if not packed or dimension != len(shape) + ROWS]
    even = next((dimension for dimension in possible if shape[dimension] % data.size == 0), possible[0])
    if even and shape[even] % data.size:
        what = f"{data.size} replicas cannot have equal parts of the {shape[even]} columns of an adapter on experts"
        raise PlanRefused(what, where="parallel.shard", change="set parallel.shard=none, or another number of replicas")
    return even


def _piece(shape: torch.Size, before: Piece | None, data: Axis) -> Piece:
    """Of a parameter that had this shape on this rank, and there may have been a piece itself."""
    dimension = _dimension(shape, before, data)
    begin = min(shape[dimension], data.index * -(-shape[dimension] // data.size))  # as torch.chunk divides
    before = before or Piece(shape=tuple(shape), offsets=(0,) * len(shape))
    offsets = tuple(offset + begin * (axis == dimension) for axis, offset in enumerate(before.offsets))
    return replace(before, offsets=offsets, divided=before.divided | {"data"})

"""Tensor parallelism: weights are cut to this rank's part, and hooks around their modules exchange what makes the results whole.

A part is an ordinary parameter of the ordinary module, so that PEFT adapts it and bitsandbytes quantises it as any other. Of an adapter on
columns A is whole and B cut to the same outputs; on rows A is cut to the same inputs and B whole. Of what is whole a rank finds a part of
the gradient. In order: `divide`, as the weights are read (`luthier.model.arrive`), then quantise, then `as_if_whole` around what makes
the adapter, then `connect`. Fused layers (`luthier.model.lora`) exchange the same inside.
"""

import functools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.model import exchange, experts
from luthier.model.division import INPUTS, Cut, Division, cut_of, cut_under, division_of, planned, under_adapter
from luthier.model.dropout import ADAPTER
from luthier.model.mesh import Axis, Piece, Pieces


def divide(model: PreTrainedModel, axis: Axis) -> None:
    """Cut the model's weights to this rank's, in place, on whatever device they are; nothing where the rank is alone.

    Raises PlanRefused where the model has no plan for it, or its sizes do not divide.
    """
    if axis.size == 1:
        return
    for module, division in planned(model, axis):
        for name, cut in division.cuts.items():
            whole = module._parameters.get(name)
            if whole is not None:
                module._parameters[name] = nn.Parameter(cut.of(whole.detach(), axis), requires_grad=whole.requires_grad)
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape


@contextmanager
def as_if_whole(model: nn.Module) -> Iterator[None]:
    """While it is open, divided modules show the shapes of whole ones: an adapter is drawn as one process draws it. Then it is cut."""
    shapes = experts.shapes(model)
    divided = [(name, module, division) for name, module in model.named_modules() if (division := _own(module))]
    parts = [dict(module.named_parameters(recurse=False)) for _, module, _ in divided]
    for name, module, division in divided:
        for own, cut in division.cuts.items():
            if (part := shapes.get(f"{name}.{own}")) is not None:
                _show(module, own, cut.whole_shape(part, division.axis))
    try:
        yield
    finally:
        for (name, module, _), own_parameters in zip(divided, parts, strict=True):
            for own, parameter in own_parameters.items():
                parameter.requires_grad_(module.get_parameter(own).requires_grad)
                module._parameters[own] = parameter
                _tell_features(module, own, shapes[f"{name}.{own}"])
    for layer, cut, axis in _adapters(model):
        a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        half = a if cut.dim == INPUTS else b
        half.weight = nn.Parameter(cut.of(half.weight.detach(), axis))
        half.out_features, half.in_features = half.weight.shape
        layer.in_features, layer.out_features = a.in_features, b.out_features


def numbers_of_all(model: nn.Module) -> int:
    """How many numbers the parameters have that ranks hold parts of."""
    named = ((cut_of(model, name), parameter.shape) for name, parameter in model.named_parameters())
    return sum(math.prod(cut[0].whole_shape(shape, cut[1]) if cut else shape) for cut, shape in named)


def connect(model: nn.Module) -> Pieces:
    """Let modules exchange what makes their parts whole, adapters included; what this rank holds of the trained parameters."""
    connected = set[nn.Module]()
    for parent in model.modules():
        entrance = _Entrance()
        for layer in parent.children():
            division, base = division_of(layer), under_adapter(layer)
            if division and base not in connected:  # the outermost of an adapter's layers comes first
                connected.add(base)
                _connect(layer, division, entrance)
        if entrance.used:
            parent.register_forward_hook(entrance.forget, always_call=True)
    return dict(_pieces(model))


def _own(module: nn.Module) -> Division | None:
    """How a module itself is divided, not the one under its adapter."""
    return None if isinstance(module, LoraLayer) else division_of(module)


def _show(module: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Let a parameter look so to PEFT, which asks a linear layer for its features, and experts for the parameter: one number, expanded."""
    _tell_features(module, name, shape)
    if not isinstance(module, nn.Linear):
        part = module.get_parameter(name)
        module._parameters[name] = nn.Parameter(part.detach().new_zeros(1).expand(shape), requires_grad=part.requires_grad)


def _tell_features(module: nn.Module, name: str, shape: Sequence[int]) -> None:
    if isinstance(module, nn.Linear) and name == "weight":
        module.out_features, module.in_features = shape


def _adapters(model: nn.Module) -> Iterator[tuple[LoraLayer, Cut, Axis]]:
    """Each adapter on a divided parameter, and how that is cut."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and (cut := cut_under(layer)):
            yield layer, *cut


def _pieces(model: nn.Module) -> Iterator[tuple[Tensor, Piece]]:
    for module in model.modules():
        division = _own(module)
        if division is None:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and name in division.cuts:
                yield parameter, _piece(parameter, division.cuts[name], division.axis)
            elif parameter.requires_grad and division.by == "heads":
                yield parameter, _partial(parameter)
    for layer, cut, axis in _adapters(model):
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        if cut.dim == INPUTS:
            yield a, _piece(a, cut, axis)
            yield b, _partial(b)
        else:
            yield a, _partial(a)
            yield b, _piece(b, cut, axis)


def _piece(part: Tensor, cut: Cut, axis: Axis) -> Piece:
    offsets = [0] * part.ndim
    offsets[cut.dim] = axis.index * part.shape[cut.dim] // cut.parts
    return Piece(shape=tuple(cut.whole_shape(part.shape, axis)), offsets=tuple(offsets), divided=frozenset({"tensor"}), packed=cut.parts)


def _partial(whole: Tensor) -> Piece:
    return Piece(shape=tuple(whole.shape), offsets=(0,) * whole.ndim, partial=True)


def _connect(layer: nn.Module, division: Division, entrance: "_Entrance") -> None:
    """Put the exchanges around a module."""
    axis, base = division.axis, under_adapter(layer)
    match division.by:
        case "columns":
            layer.register_forward_pre_hook(lambda _, inputs: (entrance.let_in(inputs[0], axis), *inputs[1:]))
            entrance.used = True
            if division.outside:
                layer.register_forward_hook(lambda _, inputs, output: exchange.gather(output, axis))
        case "rows":
            if division.outside:
                layer.register_forward_pre_hook(lambda _, inputs: (exchange.part(inputs[0], axis), *inputs[1:]))
            layer.register_forward_hook(lambda layer, inputs, output: _with_bias(exchange.added(output, axis), under_adapter(layer)))
            if base._parameters.get("bias") is not None:  # which is added once
                base.forward = functools.partial(_without_bias, weakref.ref(base))
        case "experts":  # of the router's weights each rank finds a part of the gradient, too
            layer.register_forward_pre_hook(
                lambda _, inputs: tuple(exchange.enter(given, axis) if given.is_floating_point() else given for given in inputs)
            )
            layer.register_forward_hook(lambda _, inputs, output: exchange.added(output, axis))


class _Entrance:
    """Of what sibling layers read in common, the gradient is summed once, not by each of them."""

    def __init__(self) -> None:
        self.used = False
        self._outside = self._inside = torch.empty(0)

    def let_in(self, x: Tensor, axis: Axis) -> Tensor:
        """x, whose gradient will be all ranks'."""
        if x is not self._outside:
            self._outside, self._inside = x, exchange.enter(x, axis)
        return self._inside

    def forget(self, *_: object) -> None:
        """The module that they are in is through."""
        self._outside = self._inside = torch.empty(0)


def _without_bias(held: Callable[[], Any], x: Tensor) -> Tensor:
    """A linear layer's forward as if it had none."""
    layer = held()
    bias, layer.bias = layer.bias, None
    try:
        product: Tensor = type(layer).forward(layer, x)
    finally:
        layer.bias = bias
    return product


def _with_bias(output: Tensor, layer: Any) -> Tensor:
    return output if layer.bias is None else output + layer.bias.to(output.dtype)

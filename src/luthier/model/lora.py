"""Frozen linear layers with adapters as one autograd function; its plain twin is PEFT's own layers.

T = tokens, D = features in, O = features out, r = rank.  For the members j of a group, which read the same input (q, k and v; gate and
up; or one alone), side by side in one [T, ΣO]:   y_j = h W_jᵀ + s·(drop_j(h) A_jᵀ) B_jᵀ (+ bias_j)   (Hu et al. 2021, arXiv 2106.09685)

- A frozen weight is used once per direction where it lies: no copy, no cast, no gradient. Few bits are a matrix for that product only.
- The adapter's part is written first and the base product accumulates onto it, so that both are summed in float32 and rounded once:
  added to a base output already rounded to bfloat16, the small early updates would vanish (trap 36).
- What stands before the products, RMSNorm or activation(gate)·up, is computed here, and again in the backward instead of being kept.
- The adapter is float32; its cast is made per call (at r = 16 and D = O = 4096 1/128 of the bytes of W).
- Where ranks divide W (`luthier.model.tensor`), each has some of its columns, and h's gradient is summed over them before the norm's
  backward; or some of its rows, and y is summed before bias and residual. One exchange per group and direction.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from luthier.model.attention import Unfusable
from luthier.model.division import Division
from luthier.model.dropout import ADAPTER, TokenDropout
from luthier.model.exchange import add_
from luthier.model.pointwise import Activation, drop, drop_add_, gate, gate_backward, rms_norm, rms_norm_backward
from luthier.model.quantize import Form, QuantizedLinear
from luthier.model.shard import class_of

LINEAR = (nn.Linear, QuantizedLinear)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The trained half of a member."""

    a_rD: nn.Parameter
    b_Or: nn.Parameter
    scaling: float
    dropout: TokenDropout | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One layer of a group: its frozen weight, and its adapter where it has one."""

    stored: Tensor
    """The weight [O, D]; or its bytes."""
    form: Form | None
    bias_O: Tensor | None
    adapter: Adapter | None

    @property
    def weight_OD(self) -> Tensor:
        """The weight in the compute type. One in few bits is made anew: ask once for each product, and keep none."""
        return self.stored if self.form is None else self.form.matrix(self.stored)

    @property
    def shape(self) -> tuple[int, int]:
        """O and D."""
        rows, columns = self.stored.shape if self.form is None else self.form.shape
        return rows, columns

    @property
    def dtype(self) -> torch.dtype:
        """The compute type."""
        return self.stored.dtype if self.form is None else self.form.dtype


class Prologue(Protocol):
    """What stands between a group's input x and its products."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The products' input h [T, D], and what `backward` wants besides x."""

    def backward(self, d_h: Tensor, x: Tensor, kept: tuple[Tensor, ...], d_stream: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gradient of x, and h again. `d_stream` reached x by another way and is added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """h = x."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See Prologue."""
        return x, ()

    def backward(self, d_h: Tensor, x: Tensor, kept: tuple[Tensor, ...], d_stream: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Prologue."""
        return d_h if d_stream is None else d_h + d_stream, x


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """h = RMSNorm(x)·weight, the weight as it multiplies (Gemma's is 1 + its parameter), in float32."""

    weight_D: Tensor
    eps: float

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See Prologue."""
        h = torch.empty_like(x)
        return h, (rms_norm(x, self.weight_D, self.eps, h),)

    def backward(self, d_h: Tensor, x: Tensor, kept: tuple[Tensor, ...], d_stream: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Prologue."""
        return rms_norm_backward(d_h, x, self.weight_D, kept[0], d_stream), self.forward(x)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """h = activation(gate)·up, of x = [gate | up]."""

    activation: Activation

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See Prologue."""
        h = x.new_empty(len(x), x.shape[1] // 2)
        gate(x, h, self.activation)
        return h, ()

    def backward(self, d_h: Tensor, x: Tensor, kept: tuple[Tensor, ...], d_stream: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Prologue."""
        d_x, h = torch.empty_like(x), torch.empty_like(d_h)
        gate_backward(d_h, x, d_x, h, self.activation)
        return d_x if d_stream is None else d_x + d_stream, h


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that read the same h."""

    members: tuple[Member, ...]
    prologue: Prologue = Nothing()
    division: Division | None = None
    """By columns or by rows, where the group is to exchange what makes its ranks' parts whole."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Their outputs side by side [T, ΣO], plus `residual`."""
        return self._apply(x, residual)[0]

    def with_stream(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs, and x to go on with: what is then done to x sends its gradient back through here, where it is added in passing."""
        return self._apply(x, None)

    def _apply(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        weights = [weight for member in self.members if (one := member.adapter) for weight in (one.a_rD, one.b_Or)]
        y, stream = _Products.apply(x, residual, self, *weights)  # type: ignore[no-untyped-call]
        return y, stream

    def outputs(self, y: Tensor) -> Iterator[tuple[Member, Tensor]]:
        """Each member with its columns of [T, ΣO]."""
        return zip(self.members, torch.split(y, [member.shape[0] for member in self.members], dim=1), strict=True)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, group: Group, *weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        h, kept = group.prologue.forward(x)
        y = h.new_empty(len(h), sum(member.shape[0] for member in group.members))
        downs = []
        for member, out in group.outputs(y):
            if member.adapter:
                downs.append(_dropped(h, member.adapter) @ member.adapter.a_rD.to(h.dtype).T)
                torch.mm(downs[-1], _scaled(member.adapter, h.dtype).T, out=out)
                out.addmm_(h, member.weight_OD.T)
            else:
                torch.mm(h, member.weight_OD.T, out=out)
        if group.division and group.division.by == "rows":
            add_(y, group.division.axis)
        for member, out in group.outputs(y):
            if member.bias_O is not None:
                out += member.bias_O
        if residual is not None:
            y += residual
        ctx.group, ctx.num_kept = group, len(kept)
        ctx.save_for_backward(x, *kept, *downs)
        return y, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor, d_stream: Tensor | None) -> tuple[Tensor | None, ...]:
        group: Group = ctx.group
        d_y, d_stream = d_y.contiguous(), None if d_stream is None else d_stream.contiguous()  # the kernels want rows of neighbours
        x, *rest = ctx.saved_tensors
        kept, downs = tuple(rest[: ctx.num_kept]), iter(rest[ctx.num_kept :])
        d_downs = [d_out @ _scaled(member.adapter, d_y.dtype) if member.adapter else None for member, d_out in group.outputs(d_y)]
        if ctx.needs_input_grad[0]:
            d_x, h = group.prologue.backward(_into_input(group, d_y, d_downs), x, kept, d_stream)
        else:
            d_x, h = None, group.prologue.forward(x)[0]
        d_weights: list[Tensor] = []
        for (member, d_out), d_down in zip(group.outputs(d_y), d_downs, strict=True):
            if member.adapter and d_down is not None:
                d_weights.append((d_down.T @ _dropped(h, member.adapter)).float())
                d_weights.append((d_out.T @ next(downs)).float().mul_(member.adapter.scaling))
        return d_x, d_y if ctx.needs_input_grad[1] else None, None, *d_weights


def _into_input(group: Group, d_y: Tensor, d_downs: list[Tensor | None]) -> Tensor:
    """The gradient of h: through the frozen weights, and through the adapters."""
    d_h = d_y.new_empty(len(d_y), group.members[0].shape[1])
    for index, (member, d_out) in enumerate(group.outputs(d_y)):
        if index:
            d_h.addmm_(d_out, member.weight_OD)
        else:
            torch.mm(d_out, member.weight_OD, out=d_h)
    for member, d_down in zip(group.members, d_downs, strict=True):
        if member.adapter and d_down is not None:
            a_rD, dropout = member.adapter.a_rD.to(d_y.dtype), _active(member.adapter)
            if dropout:
                drop_add_(d_h, d_down @ a_rD, dropout.known_keys(len(d_h)), dropout.salt, dropout.p, dropout.first)
            else:
                d_h.addmm_(d_down, a_rD)
    return add_(d_h, group.division.axis) if group.division and group.division.by == "columns" else d_h


def _scaled(adapter: Adapter, dtype: torch.dtype) -> Tensor:
    return (adapter.b_Or * adapter.scaling).to(dtype)


def _active(adapter: Adapter) -> TokenDropout | None:
    return adapter.dropout if adapter.dropout and adapter.dropout.training else None


def _dropped(h: Tensor, adapter: Adapter) -> Tensor:
    dropout = _active(adapter)
    if not dropout:
        return h
    out = torch.empty_like(h)
    drop(h, dropout.known_keys(len(h)), dropout.salt, dropout.p, out, dropout.first)
    return out


def member_of(layer: Any) -> Member:
    """The member for a linear layer, adapted or not; raises Unfusable, with the reason, for what the function above does not compute."""
    if any(parameter.requires_grad for name, parameter in layer.named_parameters() if "lora_" not in name):
        raise Unfusable("its own weights are trained")
    if class_of(layer) in LINEAR:
        return frozen_member(layer)
    if class_of(layer) is not LoraLinear or type(layer.base_layer) not in LINEAR:
        raise Unfusable(f"{type(layer.base_layer if isinstance(layer, LoraLayer) else layer).__name__} is not a linear layer")
    if layer.lora_variant:
        raise Unfusable(f"{type(next(iter(layer.lora_variant.values()))).__name__} is not plain LoRA")
    if layer.active_adapters != [ADAPTER] or layer.merged or layer.lora_bias[ADAPTER] or layer.fan_in_fan_out:
        raise Unfusable("several adapters, a merged one, or one with a bias")
    dropout = layer.lora_dropout[ADAPTER]
    if not isinstance(dropout, (TokenDropout, nn.Identity)):
        raise Unfusable(f"dropout by {type(dropout).__name__}")
    adapter = Adapter(
        a_rD=layer.lora_A[ADAPTER].weight,
        b_Or=layer.lora_B[ADAPTER].weight,
        scaling=layer.scaling[ADAPTER],
        dropout=dropout if isinstance(dropout, TokenDropout) else None,
    )
    return frozen_member(layer.base_layer, adapter)


def frozen_member(layer: nn.Linear, adapter: Adapter | None = None) -> Member:
    """The member for a linear layer whose own weights are not trained."""
    form = layer.form if isinstance(layer, QuantizedLinear) else None
    return Member(stored=layer.weight.detach(), form=form, bias_O=None if layer.bias is None else layer.bias.detach(), adapter=adapter)

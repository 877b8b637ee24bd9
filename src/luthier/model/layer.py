"""A decoder layer as four functions: norm·qkv, rotary·attention, o, norm·gate·up, activation·down; its twin is transformers' own layer.

T = tokens of the pack, D = hidden, H = query heads, K = key and value heads, d = head size, C = the columns of q, k and v.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from luthier.model.attention import Heads, Tree, Unfusable, attend, attend_backward, by_node, stacked
from luthier.model.division import division_of
from luthier.model.lora import Gate, Group, Norm, Nothing, member_of
from luthier.model.pointwise import Activation, Angles, HeadNorm, rotate, rotate_backward
from luthier.model.shard import class_of

ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""transformers' names for the activations that the gate kernel has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """How a layer's q, k and v become attention."""

    queries: int
    groups: int
    size: int
    scale: float
    window: int | None
    query_norm: HeadNorm | None
    key_norm: HeadNorm | None

    def columns(self, qkv_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those of q, k and v."""
        widths = [number * self.size for number in (self.queries, self.groups, self.groups)]
        q_TC, k_TC, v_TC = torch.split(qkv_TC, widths, dim=1)
        return q_TC, k_TC, v_TC


class _RotaryAttention(torch.autograd.Function):
    """Attention over q, k and v as the products left them. Only these are kept, not their rotated copies."""

    @staticmethod
    def forward(ctx: Any, qkv_TC: Tensor, shape: HeadShape, angles: Angles, tree: Tree) -> Tensor:
        ctx.of = shape, angles, tree
        out_TC, lse_HT = attend(_rotated(qkv_TC, *ctx.of), tree.blocks(shape.window), shape.scale)
        ctx.save_for_backward(qkv_TC, out_TC, lse_HT)
        return out_TC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TC: Tensor) -> tuple[Tensor | None, ...]:
        shape, angles, tree = ctx.of
        qkv_TC, out_TC, lse_HT = ctx.saved_tensors
        grads = attend_backward(grad_TC.contiguous(), _rotated(qkv_TC, *ctx.of), (out_TC, lse_HT), tree.blocks(shape.window), shape.scale)
        d_qkv_TC = torch.empty_like(qkv_TC)
        (q_TC, k_TC, v_TC), (dq_TC, dk_TC, dv_TC) = shape.columns(qkv_TC), shape.columns(d_qkv_TC)
        rotate_backward(grads.queries, q_TC, shape.query_norm, angles, dq_TC)
        rotate_backward(grads.keys, k_TC, shape.key_norm, angles, dk_TC)
        rotate_backward(grads.values, v_TC, None, None, dv_TC)
        return d_qkv_TC, None, None, None


def _rotated(qkv_TC: Tensor, shape: HeadShape, angles: Angles, tree: Tree) -> Heads:
    """Normalised and rotated q and k, and v, by node."""
    q_TC, k_TC, v_TC = shape.columns(qkv_TC)
    queries, keys = (stacked(tree, number, number * shape.size, qkv_TC) for number in (shape.queries, shape.groups))
    rotate(q_TC, shape.query_norm, angles, queries)
    rotate(k_TC, shape.key_norm, angles, keys)
    return Heads(tree=tree, queries=queries, keys=keys, values=by_node(tree, v_TC, shape.groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMlp:
    """norm·gate·up, activation·down."""

    gate_up: Group
    down: Group

    def __call__(self, hidden_TD: Tensor) -> Tensor:
        """The hidden states after it [T, D]."""
        gate_up_T2F, hidden_TD = self.gate_up.with_stream(hidden_TD)
        return self.down(gate_up_T2F, hidden_TD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A mixture of experts, which stays transformers' own module."""

    norm: nn.Module
    experts: nn.Module

    def __call__(self, hidden_TD: Tensor) -> Tensor:
        """The hidden states after it [T, D]."""
        mixed_1TD: Tensor = self.experts(self.norm(hidden_TD)[None])
        return hidden_TD + mixed_1TD[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLayer:
    """One decoder layer."""

    qkv: Group
    heads: HeadShape
    out: Group
    mlp: DenseMlp | Mixture

    def __call__(self, hidden_TD: Tensor, angles: Angles, tree: Tree, needed_S: Tensor | None) -> Tensor:
        """The hidden states after it [T, D], or [S, D] of the tokens that are needed: after attention no other is computed."""
        qkv_TC, hidden_TD = self.qkv.with_stream(hidden_TD)
        attended_TC: Tensor = _RotaryAttention.apply(qkv_TC, self.heads, angles, tree)  # type: ignore[no-untyped-call]
        if needed_S is not None:
            attended_TC, hidden_TD = attended_TC.index_select(0, needed_S), hidden_TD.index_select(0, needed_S)
        return self.mlp(self.out(attended_TC, hidden_TD))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """In what transformers' layers of Llama's form differ."""

    norm_offset: float = 0.0
    """Added to the weights of norms."""
    head_norms: bool = False
    """q and k are normalised per head."""
    window: Callable[[Any], int | None] = lambda attention: None
    """The sliding window of an attention module."""


def _window(attention: Any) -> int | None:
    window: int | None = attention.sliding_window
    return window


FAMILIES = {
    "transformers.models.llama.modeling_llama.LlamaDecoderLayer": Family(),
    "transformers.models.mistral.modeling_mistral.MistralDecoderLayer": Family(window=lambda attention: attention.config.sliding_window),
    "transformers.models.qwen2.modeling_qwen2.Qwen2DecoderLayer": Family(window=_window),
    "transformers.models.qwen3.modeling_qwen3.Qwen3DecoderLayer": Family(head_norms=True, window=_window),
    "transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeDecoderLayer": Family(head_norms=True, window=_window),
    "transformers.models.gemma.modeling_gemma.GemmaDecoderLayer": Family(norm_offset=1.0),
}


def fused_layer(layer: Any) -> FusedLayer:
    """The functions for a layer of one of the FAMILIES; raises Unfusable for another, or where a linear layer in it cannot be."""
    family, attention = family_of(layer), layer.self_attn
    return FusedLayer(
        qkv=_group(_frozen_norm(layer.input_layernorm, family), attention.q_proj, attention.k_proj, attention.v_proj),
        heads=heads_of(attention, family),
        out=_group(Nothing(), attention.o_proj),
        mlp=_mlp(layer, family),
    )


def family_of(layer: nn.Module) -> Family:
    """Of a decoder layer; raises Unfusable for one of another form."""
    name = f"{class_of(layer).__module__}.{class_of(layer).__qualname__}"
    if name not in FAMILIES:
        raise Unfusable(f"{type(layer).__name__} is not a layer that the fused functions know")
    return FAMILIES[name]


def heads_of(attention: Any, family: Family) -> HeadShape:
    """Those of an attention module, as many as this rank has."""
    return HeadShape(
        queries=attention.q_proj.out_features // attention.head_dim,
        groups=attention.k_proj.out_features // attention.head_dim,
        size=attention.head_dim,
        scale=attention.scaling,
        window=family.window(attention),
        query_norm=_head_norm(attention.q_norm) if family.head_norms else None,
        key_norm=_head_norm(attention.k_norm) if family.head_norms else None,
    )


def norm_of(norm: Any, family: Family) -> Norm:
    """What stands before a group."""
    eps = norm.eps if family.norm_offset else norm.variance_epsilon  # Gemma's module calls it otherwise
    return Norm(weight_D=norm.weight.detach().float() + family.norm_offset, eps=eps)


def gate_of(mlp: Any) -> Gate | None:
    """What stands before the down projection; nothing where the layer has experts instead."""
    if not {name for name, _ in mlp.named_children()} >= {"gate_proj", "up_proj", "down_proj"}:
        return None
    activation = mlp.config.hidden_act
    if activation not in ACTIVATIONS:
        raise Unfusable(f"activation {activation}")
    return Gate(activation=ACTIVATIONS[activation])


def _mlp(layer: Any, family: Family) -> DenseMlp | Mixture:
    mlp, norm, gate = layer.mlp, layer.post_attention_layernorm, gate_of(layer.mlp)
    if gate is None:
        return Mixture(norm=norm, experts=mlp)
    return DenseMlp(gate_up=_group(_frozen_norm(norm, family), mlp.gate_proj, mlp.up_proj), down=_group(gate, mlp.down_proj))


def _frozen_norm(norm: Any, family: Family) -> Norm:
    if norm.weight.requires_grad:
        raise Unfusable("its norms are trained")
    return norm_of(norm, family)


def _group(prologue: Norm | Gate | Nothing, *layers: nn.Module) -> Group:
    return Group(prologue=prologue, members=tuple(member_of(layer) for layer in layers), division=division_of(layers[0]))


def _head_norm(norm: Any) -> HeadNorm:
    return HeadNorm(weight_d=norm.weight.detach().float(), eps=norm.variance_epsilon)

"""The layers of a pass over slots as few functions in C and products; its twin is transformers' own layers over the same slots.

T = tokens of a pass, B · Q of its rows; D = hidden, H = query heads, C = their columns, S, L, d as in slots.py.

For a small model, or few rows, a token's time is that of Python and small operations: of a layer with adapters 1.1 ms by transformers and
PEFT whatever the size. Keys and values are rotated into their slots; attention of one token a row is one function in C, which reads what
rows share once.
"""

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from luthier.model.attention import FAR, Unfusable
from luthier.model.layer import Family, HeadShape, family_of, gate_of, heads_of, norm_of
from luthier.model.lora import Gate, Norm
from luthier.model.native import native
from luthier.model.pointwise import REALS, Angles, Stacked, attend, rotate
from luthier.model.slots import Chunk, KeySlots, Slots
from luthier.model.speakers import Products, Speakers, products_of


@dataclass(slots=True, kw_only=True)
class Pass:
    """What all layers of one pass are told."""

    slots: Slots
    chunk: Chunk
    speakers: Speakers
    masks: dict[int, Tensor]
    """By window, FAR where there is none; for passes of several tokens a row."""
    rows_B4: Tensor
    """As `attend` wants them, for passes of one."""
    own_T4: Tensor
    """Each token in its own place."""
    places_T4: Tensor
    """Each token in its row's slot."""
    angles: Angles | None = None

    def turned_by(self, embeddings: tuple[Tensor, Tensor]) -> Angles:
        """The tokens' angles, which all layers share."""
        if self.angles is None:
            cos_Td2, sin_Td2 = (whole_BQd.flatten(0, -2).chunk(2, dim=-1)[0].float().contiguous() for whole_BQd in embeddings)
            self.angles = Angles(cos_Td2=cos_Td2, sin_Td2=sin_Td2)
        return self.angles


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """norm·gate·up, activation·down."""

    norm: Norm
    gate_up: Products
    gate: Gate
    down: Products

    def __call__(self, x: Tensor, speakers: Speakers) -> Tensor:
        """The hidden states after it [T, D]."""
        gate_up_T2F = self.gate_up(self.norm.forward(x)[0], speakers)
        return self.down(self.gate.forward(gate_up_T2F)[0], speakers, x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts, which stays transformers' own module."""

    norm: nn.Module
    experts: nn.Module

    def __call__(self, x: Tensor, speakers: Speakers) -> Tensor:
        """The hidden states after it [T, D]."""
        mixed_1TD: Tensor = self.experts(self.norm(x)[None])
        return x + mixed_1TD[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLayer:
    """One decoder layer over its slots."""

    index: int
    norm: Norm
    qkv: Products
    heads: HeadShape
    out: Products
    mlp: Dense | Experts
    attention: Callable[[], nn.Module | None]

    def __call__(self, done: Pass, hidden_BQD: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **_: Any) -> Tensor:
        """A decoder layer's forward."""
        x = hidden_BQD.flatten(0, 1)
        q_TC, k_TC, v_TC = self.heads.columns(self.qkv(self.norm.forward(x)[0], done.speakers))
        heads, angles, slots = self.heads, done.turned_by(position_embeddings), done.slots.layers[self.index]
        slots.make_room(heads.groups, heads.size, x)
        queries_TC = torch.empty_like(q_TC, memory_format=torch.contiguous_format)
        rotate(q_TC, heads.query_norm, angles, Stacked(flat_PC=queries_TC, num_heads=heads.queries, places_P4=done.own_T4))
        keys, values = (
            Stacked(flat_PC=held.flatten(2).flatten(0, 1), num_heads=heads.groups, places_P4=done.places_T4)
            for held in (slots.keys, slots.values)
        )
        rotate(k_TC, heads.key_norm, angles, keys)
        rotate(v_TC, None, None, values)
        x = self.out(self._attended(done, queries_TC, slots), done.speakers, x)
        return self.mlp(x, done.speakers).view_as(hidden_BQD)

    def _attended(self, done: Pass, queries_TC: Tensor, slots: KeySlots) -> Tensor:
        heads = self.heads
        if done.chunk.width == 1:
            out_TC = torch.empty_like(queries_TC)
            attend(queries_TC, slots.keys, slots.values, done.rows_B4, (heads.scale, heads.window or FAR), out_TC)
            return out_TC
        q_BHQd = queries_TC.view(len(done.chunk.ids), done.chunk.width, heads.queries, heads.size).transpose(1, 2)
        mask, attention = done.masks[heads.window or FAR], self.attention()
        out_BQHd: Tensor = sdpa_attention_forward(attention, q_BHQd, *slots.seen(), mask, scaling=heads.scale)[0]
        return out_BQHd.reshape(queries_TC.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abreast:
    """Passes of a model over slots: by the functions here, or by the model's own layers."""

    base: PreTrainedModel
    slots: Slots
    layers: Mapping[nn.Module, SlotLayer]
    """Empty: the model's own."""
    mixes: bool
    """Whether rows with different adapters may share a pass; else all speak with the one that is PEFT's active one."""

    def logits(self, chunk: Chunk, keep: int = 1) -> Tensor:
        """Of each row's last `keep` tokens of the pass, all for 0 [B, ·, V]."""
        ids_BQ, positions_BQ = self.slots.aim(chunk, self.base.device)
        inputs: dict[str, Any] = {"input_ids": ids_BQ, "position_ids": positions_BQ, "past_key_values": self.slots, "use_cache": True}
        # By places: of a number, rows would lie apart, and torch would copy the head for each (7 rows, 32,000 words, bfloat16: 0.9 s).
        inputs["logits_to_keep"] = torch.arange(chunk.width - keep if keep else 0, chunk.width, device=self.base.device)
        if self.layers:
            with _in_place(self.layers, _pass(self.slots, chunk, positions_BQ, self.base.dtype)):
                logits: Tensor = self.base(**inputs, attention_mask=torch.zeros(1, 1, 1, 1)).logits
            return logits
        masks = self.slots.masks(positions_BQ, self.base.dtype)
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        logits = self.base(**inputs, attention_mask=mask).logits
        return logits


def slot_layers(base: PreTrainedModel, names: Sequence[str]) -> dict[nn.Module, SlotLayer]:
    """Every decoder layer as above, with the adapters of these names as they are now; raises Unfusable where one of them cannot be so."""
    if base.device.type != "cpu" or base.dtype not in REALS or native().library is None:
        raise Unfusable("the functions over slots are in C, for float32 and bfloat16 on a CPU")
    layers = [module for module in base.modules() if "self_attn" in dict(module.named_children())]
    found = {layer: _slot_layer(layer, index, names) for index, layer in enumerate(layers)}
    if isinstance(base, FSDPModule) or len(found) != base.config.get_text_config().num_hidden_layers:
        raise Unfusable("some layers have no attention, or are elsewhere")
    return found


def all_inside(base: PreTrainedModel, layers: Mapping[nn.Module, SlotLayer]) -> bool:
    """Whether no adapter stands anywhere else: on the head, on experts."""
    known = {linear for layer in layers for name in ("self_attn", "mlp") for linear in _projections(layer.get_submodule(name))}
    return all(module in known for module in base.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)))


def _pass(slots: Slots, chunk: Chunk, positions_BQ: Tensor, dtype: torch.dtype) -> Pass:
    places_T, length = slots.places_T, slots.length
    own_T, none_T = torch.arange(len(places_T)), torch.zeros_like(places_T)
    lenders = chunk.lenders or [(row, 0) for row in range(chunk.start, chunk.stop)]
    rows = [
        (row * length, done + 1, lender * length, lent)
        for row, done, (lender, lent) in zip(range(chunk.start, chunk.stop), chunk.done, lenders, strict=True)
    ]
    masks = slots.masks(positions_BQ, dtype) if chunk.width > 1 else {}
    return Pass(
        slots=slots,
        chunk=chunk,
        speakers=Speakers.of(chunk.speakers, chunk.width, places_T.device),
        masks={slots.windows[kind] or FAR: mask for kind, mask in masks.items() if mask is not None},
        rows_B4=torch.tensor(rows),
        own_T4=torch.stack([own_T, own_T, none_T, none_T + 1], dim=1),
        places_T4=torch.stack([own_T, places_T, none_T, none_T + 1], dim=1),
    )


@contextmanager
def _in_place(layers: Mapping[nn.Module, SlotLayer], done: Pass) -> Iterator[None]:
    """While it is open, the model's layers are these."""
    before = {layer: vars(layer).get("forward") for layer in layers}
    try:
        for layer, function in layers.items():
            layer.forward = functools.partial(function, done)
        yield
    finally:
        for layer, forward in before.items():
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _projections(module: nn.Module) -> Iterator[nn.Module]:
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return (child for name, child in module.named_children() if name in names)


def _slot_layer(layer: Any, index: int, names: Sequence[str]) -> SlotLayer:
    family, attention = family_of(layer), layer.self_attn
    return SlotLayer(
        index=index,
        norm=norm_of(layer.input_layernorm, family),
        qkv=products_of((attention.q_proj, attention.k_proj, attention.v_proj), names),
        heads=heads_of(attention, family),
        out=products_of((attention.o_proj,), names),
        mlp=_mlp(layer, family, names),
        attention=weakref.ref(attention),
    )


def _mlp(layer: Any, family: Family, names: Sequence[str]) -> Dense | Experts:
    mlp, norm, gate = layer.mlp, layer.post_attention_layernorm, gate_of(layer.mlp)
    if gate is None:
        return Experts(norm=norm, experts=mlp)
    gate_up, down = products_of((mlp.gate_proj, mlp.up_proj), names), products_of((mlp.down_proj,), names)
    return Dense(norm=norm_of(norm, family), gate_up=gate_up, gate=gate, down=down)

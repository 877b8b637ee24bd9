"""LoRA's dropout as a function of (seed, step, token, module): no generator state, and no dependence on how rows are divided or packed.

A token is known by its key (`luthier.data.pack`): in a tree by all that stands before it, so that rows which share a token share its
mask; else by its row and position.
"""

import hashlib
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from luthier.model.division import INPUTS, cut_under
from luthier.model.pointwise import drop

ADAPTER = "default"
"""The name PEFT gives to the one adapter that a model has here."""


@dataclass(slots=True)
class Draw:
    """What the masks of a whole model follow from now: keys of the tokens, those that predict targets, salt of seed and step."""

    keys_A: Tensor
    needed_S: Tensor
    salt: int


class TokenDropout(nn.Module):
    """Takes the place of nn.Dropout in one of PEFT's layers: zeros features with probability `p`, by token, module and feature.

    The features that it sees may be a rank's part of a layer's, from `first` on.
    """

    def __init__(self, p: float, name: str, draw: Draw, first: int = 0) -> None:
        super().__init__()
        self.p, self.first = p, first
        self._draw = draw
        self._number = seed_of(name)

    def keys(self, num_tokens: int) -> Tensor | None:
        """Of the tokens that a layer sees: all of the micro batch, or those that predict a target; nothing where it is neither."""
        draw = self._draw
        if num_tokens == len(draw.keys_A):
            return draw.keys_A
        return draw.keys_A[draw.needed_S] if num_tokens == len(draw.needed_S) else None

    def known_keys(self, num_tokens: int) -> Tensor:
        """Of the tokens that a layer sees; raises ValueError where `draw` was not called for them."""
        keys_T = self.keys(num_tokens)
        if keys_T is None:
            raise ValueError(f"dropout by token knows no keys for a layer that sees {num_tokens} tokens: draw was not called for them")
        return keys_T

    @property
    def salt(self) -> int:
        """Of this module in this step."""
        return self._draw.salt ^ self._number

    def salt_of(self, expert: int) -> int:
        """Of one of a mixture's experts, each of which drops otherwise."""
        return self._draw.salt ^ seed_of(f"{self._number}/{expert}")

    def forward(self, x: Tensor) -> Tensor:
        """The plain twin of the dropout inside `luthier.model.lora`: same bits.

        A layer that sees other tokens than the micro batch's draws from torch's generator.
        """
        if not self.training:
            return x
        keys_T = self.keys(x.numel() // x.shape[-1])
        if keys_T is None:
            return F.dropout(x, self.p)
        return _Drop.apply(x, keys_T, self.salt, self.p, self.first)  # type: ignore[no-any-return, no-untyped-call]

    def extra_repr(self) -> str:
        """What printing a model shows."""
        return f"p={self.p}"


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keys_T: Tensor, salt: int, p: float, first: int) -> Tensor:
        ctx.mask = keys_T, salt, p, first
        flat = x.reshape(-1, x.shape[-1]).contiguous()  # a transposed input may still be a view
        out = torch.empty_like(flat)
        drop(flat, keys_T, salt, p, out, first)
        return out.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Drop.apply(grad, *ctx.mask), None, None, None, None  # type: ignore[no-untyped-call]


_draws: WeakKeyDictionary[nn.Module, Draw] = WeakKeyDictionary()


def install(model: nn.Module) -> None:
    """Replace the dropout of every adapted layer; `draw` must be called before each micro batch."""
    none = torch.empty(0, dtype=torch.long)
    shared = Draw(keys_A=none, needed_S=none, salt=0)
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.lora_dropout[ADAPTER], nn.Dropout):
            layer.lora_dropout[ADAPTER] = TokenDropout(layer.lora_dropout[ADAPTER].p, name, shared, _first_input(layer))
            _draws[model] = shared


def _first_input(layer: LoraLayer) -> int:
    """Of those that a rank has of a layer that is divided by rows."""
    cut = cut_under(layer)
    return cut[1].index * layer.in_features if cut and cut[0].dim == INPUTS else 0


def draw(model: nn.Module, keys_A: Tensor, needed_S: Tensor, seeds: tuple[int, int]) -> None:
    """Masks of (seed, step) for a micro batch's tokens, of which `needed_S` predict targets; nothing where the model has no dropout."""
    if model in _draws:
        drawn = _draws[model]
        drawn.keys_A, drawn.needed_S, drawn.salt = keys_A, needed_S, seed_of(f"{seeds[0]}/{seeds[1]}")


def seed_of(text: str) -> int:
    """63 bits that follow from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1

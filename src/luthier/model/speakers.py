"""Frozen linear layers with the adapters of several speakers side by side; its plain twin is PEFT's own layers, one adapter at a time.

T = tokens, D = features in, O = features out, R = ranks of all adapters of all members, in a row.

All adapters are one wide one: h Aᵀ [T, R] is computed for every token, what is not its own speaker's is set to zero, and the rest goes
through B. That is two products whatever the number of speakers, and a token of the base alone has zeros, which change nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from luthier.model.attention import Unfusable
from luthier.model.division import division_of
from luthier.model.lora import LINEAR, Member, frozen_member
from luthier.model.shard import class_of


@dataclass(slots=True, kw_only=True)
class Speakers:
    """Who speaks in a pass: for each token the number of its adapter, -1 for the base alone."""

    numbers_T: Tensor
    some: bool
    """Whether any token has an adapter."""
    all_same: int
    """The number that all have; -1 where they differ."""
    hidden: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, numbers: Sequence[int], width: int, device: torch.device) -> "Speakers":
        """Of rows with `width` tokens each."""
        numbers_T = torch.tensor(numbers, device=device).repeat_interleave(width)
        return cls(numbers_T=numbers_T, some=max(numbers) >= 0, all_same=numbers[0] if len(set(numbers)) == 1 else -1)

    def hide(self, z_TR: Tensor, owners: tuple[int, ...]) -> Tensor:
        """Zero in the columns of others."""
        if len(set(owners)) == 1 and owners[0] == self.all_same:
            return z_TR
        if owners not in self.hidden:
            self.hidden[owners] = self.numbers_T[:, None] != torch.tensor(owners, device=z_TR.device)
        return z_TR.masked_fill_(self.hidden[owners], 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Layers that read the same input (q, k and v; gate and up; or one alone), their outputs side by side."""

    members: tuple[Member, ...]
    a_RD: Tensor | None
    """Of every member's adapters, one below the other, in the compute type; nothing where there is none."""
    owners: tuple[int, ...]
    """Whose each of A's rows is."""
    bs_OR: tuple[Tensor | None, ...]
    """Each member's B, times its scaling."""

    def __call__(self, h: Tensor, speakers: Speakers, residual: Tensor | None = None) -> Tensor:
        """Their outputs [T, ΣO], plus `residual`. The adapters' part is written first, and rounded once with the base's (trap 36)."""
        y = h.new_empty(len(h), sum(member.shape[0] for member in self.members))
        z_TR = speakers.hide(h @ self.a_RD.T, self.owners) if self.a_RD is not None and speakers.some else None
        start = 0
        for member, b_OR, out in zip(self.members, self.bs_OR, self._columns(y), strict=True):
            if z_TR is None or b_OR is None:
                torch.mm(h, member.weight_OD.T, out=out)
            else:
                torch.mm(z_TR[:, start : start + b_OR.shape[1]], b_OR.T, out=out)
                out.addmm_(h, member.weight_OD.T)
                start += b_OR.shape[1]
            if member.bias_O is not None:
                out += member.bias_O
        return y if residual is None else y.add_(residual)

    def _columns(self, y: Tensor) -> Iterator[Tensor]:
        return iter(torch.split(y, [member.shape[0] for member in self.members], dim=1))


def products_of(layers: Sequence[nn.Module], names: Sequence[str]) -> Products:
    """Of layers with the adapters of these names, as they are now; raises Unfusable for other kinds."""
    members, ranks, owners, bs = [], [], [], []
    for layer in layers:
        linear = layer.base_layer if isinstance(layer, LoraLinear) else layer
        if class_of(linear) not in LINEAR or division_of(layer) is not None or not isinstance(linear, nn.Linear):
            raise Unfusable(f"{type(linear).__name__} is not a linear layer, or not whole")
        member = frozen_member(linear)
        own = []
        for number, name in enumerate(names):
            if isinstance(layer, LoraLinear) and name in layer.lora_A:
                if class_of(layer) is not LoraLinear or layer.lora_variant or layer.lora_bias[name] or layer.fan_in_fan_out or layer.merged:
                    raise Unfusable("an adapter that is merged, or not plain LoRA")
                a_rD = layer.lora_A[name].weight.detach().to(member.dtype)
                ranks.append(a_rD)
                owners += [number] * len(a_rD)
                own.append((layer.lora_B[name].weight.detach() * layer.scaling[name]).to(member.dtype))
        members.append(member)
        bs.append(torch.cat(own, dim=1) if own else None)
    return Products(members=tuple(members), a_RD=torch.cat(ranks) if ranks else None, owners=tuple(owners), bs_OR=tuple(bs))

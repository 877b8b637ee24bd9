"""The model as training runs it: packs where attention keeps rows apart, fused functions where they are known, PEFT's layers elsewhere.

Nothing is taken on trust: each way is tried on this very model before it is used, and gives way to the plainer one, with the reason.
"""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from luthier.data.pack import bins
from luthier.data.store import TokenRow
from luthier.model import attention, dropout
from luthier.model.attention import Tree, Unfusable
from luthier.model.head import PLAIN
from luthier.model.layer import FusedLayer, fused_layer
from luthier.model.lora import Group, member_of
from luthier.model.native import native
from luthier.model.pointwise import Angles

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative difference of logits, median over tokens, between two right ways to compute them; a wrong position or scale gives > 0.3."""
LEAK = 2**-5
"""Relative difference of a token's logits, at most, where another row of its pack changes. Dense models have 0; experts are regrouped."""
ATTENTION_DROPOUT = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""What configs call it. Models of today have none."""
WINDOWS = ("sliding_window", "attention_chunk_size")

Forward = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """What became of a model: whether its rows may be packed, what is fused, and why the rest is not."""

    packs: bool
    num_layers: int = 0
    num_linear: int = 0
    """Adapted linear layers, outside of fused layers, that are one function each."""
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        fused = [f"{number} {what}" for number, what in ((self.num_layers, "layers"), (self.num_linear, "adapters")) if number]
        return "; ".join([f"fused: {', '.join(fused)}" if fused else "the model's own layers", *self.reasons])


def fuse(model: PreTrainedModel | PeftModel, *, pack: bool, longest: int) -> Fusion:
    """Prepare a model for packs and put the fused functions in place; without `pack` only its dropout becomes one by token.

    If a pack of three rows does not give what the rows alone give, first the fused functions are taken back, then packs. `longest` is the
    longest row in tokens.
    """
    dropout.install(model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not pack:
        return Fusion(packs=False)
    obstacle = _obstacle(base, longest)
    if obstacle:
        return Fusion(packs=False, reasons=(obstacle,))
    own, training = base.config._attn_implementation, model.training
    model.eval()
    alone = _alone(base)
    base.set_attn_implementation(attention.implementation(base.device))
    fusion, patched = _patch(base)
    difference = _difference(base, alone)
    if difference and (fusion.num_layers or fusion.num_linear):
        for module, plain in patched:
            module.forward = plain
        fusion = Fusion(packs=True, reasons=(f"fused, this model gives other results: {difference}",))
        difference = _difference(base, alone)
    if difference:
        base.set_attn_implementation(own)
        fusion = Fusion(packs=False, reasons=(f"rows cannot be packed for this model: {difference}",))
    model.train(training)
    return fusion


def _obstacle(base: PreTrainedModel, longest: int) -> str:
    """What the config asks for that packs cannot do; empty where it is nothing."""
    config = base.config.get_text_config()
    values = config.to_dict()
    if any(values.get(name) for name in ATTENTION_DROPOUT):
        return "packs cannot drop attention weights, as this model's config asks"
    window = min([values[name] for name in WINDOWS if values.get(name)], default=longest)
    if window < longest and (base.device.type != "cpu" or config.model_type not in PLAIN):  # whose layers tell attention their window
        return f"rows of up to {longest} tokens are longer than this model's attention window, {window}, which packs of it do not keep"
    return ""


def _patch(base: PreTrainedModel) -> tuple[Fusion, list[tuple[nn.Module, Forward]]]:
    """Put fused functions where they are known; what was done, and the forwards that were there before."""
    reasons: Counter[str] = Counter()
    patched: list[tuple[nn.Module, Forward]] = []
    inside: set[nn.Module] = set()
    layers = [module for module in base.modules() if "self_attn" in dict(module.named_children())]
    for layer in layers if base.device.type == "cpu" else ():  # on a GPU attention is FlexAttention's, inside transformers' layer
        try:
            fused = fused_layer(layer)
        except Unfusable as reason:
            reasons[str(reason)] += 1
            continue
        patched.append((layer, layer.forward))
        inside.update(layer.modules())
        place = _Place(layer=layer, plain=layer.forward, last=layer is layers[-1])
        layer.forward = functools.partial(_layer, fused, place)
    num_layers = len(patched)
    for module in base.modules():
        if isinstance(module, LoraLinear) and module not in inside:
            try:
                group = Group(members=(member_of(module),))
            except Unfusable as reason:
                reasons[str(reason)] += 1
                continue
            patched.append((module, module.forward))
            module.forward = functools.partial(_linear, group, module, module.forward)
    told = tuple(f"{number} × {reason}" for reason, number in reasons.items())
    if base.device.type == "cpu" and native().library is None:
        told = (*told, f"the kernels run in torch: {native().note}")
    return Fusion(packs=True, num_layers=num_layers, num_linear=len(patched) - num_layers, reasons=told), patched


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a fused layer stands."""

    layer: Any
    plain: Forward
    last: bool


def _layer(
    fused: FusedLayer, place: _Place, hidden_BTD: Tensor, tree: Tree | None = None, needed_S: Tensor | None = None, **options: Any
) -> Tensor:
    """A decoder layer's forward: fused for a pack; its own otherwise, as in generation, or where adapters are switched off or merged.

    The last gives the hidden states of the tokens that are needed only.
    """
    layer, plain = place.layer, place.plain
    if tree is None:
        return plain(hidden_BTD, **options)
    if any(module.disable_adapters or module.merged for module in layer.modules() if isinstance(module, LoraLinear)):
        return plain(hidden_BTD, tree=tree, **options)
    cos_Td2, sin_Td2 = (whole_1Td[0].chunk(2, dim=-1)[0].float().contiguous() for whole_1Td in options["position_embeddings"])
    inputs = (hidden_BTD[0], Angles(cos_Td2=cos_Td2, sin_Td2=sin_Td2), tree, needed_S if place.last else None)
    if layer.gradient_checkpointing and layer.training:  # which transformers does inside the forward that this one stands for
        recomputed: Tensor = checkpoint(fused, *inputs, use_reentrant=False, preserve_rng_state=False)
        return recomputed[None]
    return fused(*inputs)[None]


def _linear(group: Group, layer: LoraLinear, plain: Forward, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """An adapted linear layer's forward: fused, unless the adapter is switched off or sees other tokens than its dropout knows."""
    weight_OD, adapter = group.members[0].weight_OD, group.members[0].adapter
    flat = x.reshape(-1, x.shape[-1])
    dropout = adapter.dropout if adapter and layer.training else None
    if layer.disable_adapters or layer.merged or args or options or (dropout and dropout.keys(len(flat)) is None):
        return plain(x, *args, **options)
    return group(flat.to(weight_OD.dtype)).view(*x.shape[:-1], len(weight_OD))


def _alone(base: PreTrainedModel) -> Tensor:
    """Logits of each trial row by itself, end to end."""
    with torch.no_grad():
        ids = [torch.from_numpy(row.ids.astype(np.int64)).to(base.device) for row in _trial_rows(base)]
        return torch.cat([base(input_ids=row[None], use_cache=False).logits[0] for row in ids])


def _difference(base: PreTrainedModel, alone: Tensor) -> str:
    """What is wrong with the rows' logits if they stand in one pack; empty where nothing is."""
    rows = _trial_rows(base)
    changed = TokenRow(ids=(rows[0].ids + 1) % _vocabulary(base), supervised=rows[0].supervised)
    try:
        packed, again = _packed(base, rows), _packed(base, [changed, *rows[1:]])
    except (TypeError, ValueError, RuntimeError, Unfusable) as error:  # an architecture that takes no such arguments, or asks for more
        return str(error).splitlines()[0]
    apart = _apart(packed, alone).median()
    if not apart < TOLERANCE[base.dtype]:
        return f"in a pack, their logits are {apart:.1%} off"
    moved = _apart(again[len(changed) :], packed[len(changed) :]).max()
    return "" if moved < LEAK else f"a change in one row moves the logits of the next by {moved:.1%}"


def _apart(logits_TV: Tensor, expected_TV: Tensor) -> Tensor:
    """Relative difference of each token's logits."""
    apart_T: Tensor = (logits_TV - expected_TV).float().norm(dim=-1) / expected_TV.float().norm(dim=-1)
    return apart_T


def _packed(base: PreTrainedModel, rows: list[TokenRow]) -> Tensor:
    """Logits of rows in one pack, end to end."""
    (pack,) = bins(rows, range(len(rows)), sum(map(len, rows)))
    ids_1T, positions_1T = (torch.from_numpy(array)[None].to(base.device) for array in (pack.ids_T, pack.positions_T))
    with torch.no_grad():
        logits_1TV: Tensor = base(
            input_ids=ids_1T, position_ids=positions_1T, use_cache=False, **attention.arguments(Tree.of(pack), base.device)
        ).logits
    return logits_1TV[0]


def _trial_rows(base: PreTrainedModel) -> list[TokenRow]:
    """Three rows of random tokens, the longest first, as `bins` lays them."""
    random = np.random.default_rng(0)
    lengths = (24, 17, 9)
    return [TokenRow(ids=random.integers(0, _vocabulary(base), n, np.int32), supervised=np.ones(n, np.bool_)) for n in lengths]


def _vocabulary(base: PreTrainedModel) -> int:
    size: int = base.config.get_text_config().vocab_size
    return size

"""The model as training runs it: packs where attention keeps rows apart, fused functions where they are known, PEFT's layers elsewhere.

Nothing is taken on trust: each way is tried on this very model before it is used, and gives way to the plainer one, with the reason.
"""

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from luthier.data.pack import MIN_SHARED, Pack, bins, trees
from luthier.data.store import TokenRow
from luthier.model import attention, dropout
from luthier.model.adapt import base_of
from luthier.model.attention import Tree, Unfusable
from luthier.model.division import division_of
from luthier.model.head import PLAIN
from luthier.model.layer import FusedLayer, fused_layer
from luthier.model.lora import Group, member_of
from luthier.model.native import native
from luthier.model.pipeline import as_one, of_all_stages
from luthier.model.pointwise import Angles
from luthier.model.shard import evaluating
from luthier.plan.memory import TRIED
from luthier.plan.setup import Engine

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative difference of logits, median over tokens, between two right ways to compute them; a wrong position or scale gives > 0.3."""
REGROUPED = 2**-5
"""Relative difference of a token's logits, at most, where another row of its pack changes and a mixture's experts see other groups of
tokens, which are rounded otherwise. In a dense model nothing may move."""
ATTENTION_DROPOUT = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""What configs call it. Models of today have none."""
SOFTMAX = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layer types, as configs tell them, that have no state."""
WINDOWS = ("sliding_window", "attention_chunk_size")

Held = Callable[[], Any]
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """What became of a model: whether its rows may be packed, what is fused, and why the rest is not."""

    packs: bool
    num_layers: int = 0
    num_linear: int = 0
    """Adapted linear layers, outside of fused layers, that are one function each."""
    reasons: tuple[str, ...] = ()

    @property
    def engine(self) -> Engine:
        """What computes the layers, as the plan names it."""
        return "plain" if not self.packs else "fused" if self.num_layers else "packed"

    def __str__(self) -> str:
        fused = [f"{number} {what}" for number, what in ((self.num_layers, "layers"), (self.num_linear, "adapters")) if number]
        return "; ".join([f"fused: {', '.join(fused)}" if fused else "the model's own layers", *self.reasons])


def fuse(model: PreTrainedModel | PeftModel, *, pack: bool, longest: int) -> Fusion:
    """Prepare a model for packs and put the fused functions in place; without `pack` only its dropout becomes one by token.

    If a pack of three rows does not give what the rows alone give, first the fused functions are taken back, then packs. `longest` is the
    longest row in tokens.
    """
    dropout.install(model)
    base = base_of(model)
    if not pack:
        return Fusion(packs=False)
    obstacle = _obstacle(base, longest)
    if obstacle:
        return Fusion(packs=False, reasons=(obstacle,))
    with evaluating(model), as_one(model):  # a model that is divided is tried whole, and what it shows is the same to all
        return _tried(base)


def _tried(base: PreTrainedModel) -> Fusion:
    own, rows = base.config._attn_implementation, _trial_rows(base.config.get_text_config().vocab_size)
    alone = _alone(base, rows)
    base.set_attn_implementation(attention.NAME)
    fusion, patched = _patch(base)
    fusion = replace(fusion, num_layers=of_all_stages(base, fusion.num_layers), num_linear=of_all_stages(base, fusion.num_linear))
    difference = _difference(base, rows, alone)
    if difference and (fusion.num_layers or fusion.num_linear):
        for module in patched:
            del module.forward
        fusion = Fusion(packs=True, reasons=(f"fused, this model gives other results: {difference}",))
        difference = _difference(base, rows, alone)
    if difference:
        base.set_attn_implementation(own)
        fusion = Fusion(packs=False, reasons=(f"rows cannot be packed for this model: {difference}",))
    return fusion


def _obstacle(base: PreTrainedModel, longest: int) -> str:
    """What the config asks for that packs cannot do; empty where it is nothing."""
    config = base.config.get_text_config()
    values = config.to_dict()
    if any(values.get(name) for name in ATTENTION_DROPOUT):
        return "packs cannot drop attention weights, as this model's config asks"
    states = sorted(set(values.get("layer_types") or ()) - SOFTMAX)
    if states:
        return f"rows of a pack leak through layers with a state: {', '.join(states)}"
    window = min([values[name] for name in WINDOWS if values.get(name)], default=longest)
    if window < longest and (base.device.type != "cpu" or config.model_type not in PLAIN):  # whose layers tell attention their window
        return f"rows of up to {longest} tokens are longer than this model's attention window, {window}, which packs of it do not keep"
    return ""


def _patch(base: PreTrainedModel) -> tuple[Fusion, list[nn.Module]]:
    """Put fused functions where they are known, as a forward of the instance; what was done, and to which modules.

    They hold their module weakly: a cycle would keep the model in memory after training. Where replicas divide the weights, a layer has
    them only while it is computed, and they are looked up in each call.
    """
    undivided = not isinstance(base, FSDPModule)
    reasons: Counter[str] = Counter()
    patched: list[nn.Module] = []
    inside: set[nn.Module] = set()
    layers = [module for module in base.modules() if "self_attn" in dict(module.named_children())]
    for layer in layers if base.device.type == "cpu" else ():  # on a GPU attention is FlexAttention's, inside transformers' layer
        try:
            fused = fused_layer(layer)
        except Unfusable as reason:
            reasons[str(reason)] += 1
            continue
        found = functools.partial(_given, fused) if undivided else fused_layer
        layer.forward = functools.partial(_layer, found, weakref.ref(layer), layer is layers[-1])
        patched.append(layer)
        inside.update(layer.modules())
    num_layers = len(patched)
    for module in base.modules():
        if isinstance(module, LoraLinear) and module not in inside:
            try:
                group = _group_of(module)
            except Unfusable as reason:
                reasons[str(reason)] += 1
                continue
            module.forward = functools.partial(_linear, functools.partial(_given, group) if undivided else _group_of, weakref.ref(module))
            patched.append(module)
    told = tuple(f"{number} × {reason}" for reason, number in reasons.items())
    if base.device.type == "cpu" and native().library is None:
        told = (*told, f"the kernels run in torch: {native().note}")
    return Fusion(packs=True, num_layers=num_layers, num_linear=len(patched) - num_layers, reasons=told), patched


def _given(found: Found, _: nn.Module) -> Found:
    """What was found once."""
    return found


def _group_of(layer: nn.Module) -> Group:
    """Of one layer. What ranks that divide it exchange, and a bias after that, are added around its forward (`luthier.model.tensor`)."""
    member, division = member_of(layer), division_of(layer)
    return Group(members=(replace(member, bias_O=None) if division and division.by == "rows" else member,))


def _layer(
    found: Callable[[Any], FusedLayer],
    held: Held,
    last: bool,
    hidden_BTD: Tensor,
    tree: Tree | None = None,
    needed_S: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """A decoder layer's forward: fused for a pack; its own otherwise, as in generation, or where adapters are switched off or merged.

    The last gives the hidden states of the tokens that are needed only.
    """
    layer = held()
    if tree is None or any(module.disable_adapters or module.merged for module in layer.modules() if isinstance(module, LoraLinear)):
        plain: Tensor = type(layer).forward(layer, hidden_BTD, **options if tree is None else {**options, "tree": tree})
        return plain
    fused = found(layer)
    cos_Td2, sin_Td2 = (whole_1Td[0].chunk(2, dim=-1)[0].float().contiguous() for whole_1Td in options["position_embeddings"])
    inputs = (hidden_BTD[0], Angles(cos_Td2=cos_Td2, sin_Td2=sin_Td2), tree, needed_S if last else None)
    if layer.gradient_checkpointing and layer.training:  # which transformers does inside the forward that this one stands for
        recomputed: Tensor = checkpoint(fused, *inputs, use_reentrant=False, preserve_rng_state=False)
        return recomputed[None]
    return fused(*inputs)[None]


def _linear(found: Callable[[Any], Group], held: Held, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """An adapted linear layer's forward: fused, unless the adapter is switched off or sees other tokens than its dropout knows."""
    layer = held()
    group = found(layer)
    (member,) = group.members
    adapter = member.adapter
    flat = x.reshape(-1, x.shape[-1]).contiguous()  # a transposed input may still be a view
    dropout = adapter.dropout if adapter and layer.training else None
    if layer.disable_adapters or layer.merged or args or options or (dropout and dropout.keys(len(flat)) is None):
        plain: Tensor = type(layer).forward(layer, x, *args, **options)
        return plain
    return group(flat.to(member.dtype)).view(*x.shape[:-1], member.shape[0])


def _alone(base: PreTrainedModel, rows: list[TokenRow]) -> list[Tensor]:
    """Logits of each row by itself."""
    ids = [torch.from_numpy(row.ids.astype(np.int64)).to(base.device) for row in rows]
    return [base(input_ids=row[None], use_cache=False).logits[0] for row in ids]


def _difference(base: PreTrainedModel, rows: list[TokenRow], alone: list[Tensor]) -> str:
    """What is wrong with the rows' logits if they stand in one pack, end to end or as a tree; empty where nothing is."""
    changed = [replace(rows[0], ids=rows[0].ids[::-1]), *rows[1:]]
    (end_to_end,), (other,), (tree,) = (
        packed(some, range(len(rows)), sum(map(len, rows))) for packed, some in ((bins, rows), (bins, changed), (trees, rows))
    )
    num_others = sum(map(len, rows[1:]))
    try:
        packed = _packed(base, end_to_end)
        apart = _apart(packed, alone).median()
        moved = _apart(_packed(base, other)[-num_others:], [packed[-num_others:]]).max()
        apart = max(apart, _apart(_packed(base, tree), _expected(tree, rows, alone))[_descended(tree)].median())
    except torch.OutOfMemoryError:
        raise
    except Unfusable as reason:
        return str(reason)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError) as error:  # of a foreign architecture
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if not apart < TOLERANCE[base.dtype]:
        return f"in a pack, their logits are {apart:.1%} off"
    allowed = REGROUPED if of_all_stages(base, sum("experts" in name for name, _ in base.named_modules())) else 0.0
    return "" if moved <= allowed else f"a change in one row moves the logits of the next by {moved:.2%}"


def _expected(pack: Pack, rows: list[TokenRow], alone: list[Tensor]) -> Iterator[Tensor]:
    """The logits of the rows' tokens in the order of the pack, node by node: each from a row that goes through it."""
    for node in pack.nodes:
        at = slice(int(pack.positions_T[node.start]), int(pack.positions_T[node.stop - 1]) + 1)
        ids = pack.ids_T[node.start : node.stop]
        yield next(logits[at] for row, logits in zip(rows, alone, strict=True) if np.array_equal(row.ids[at], ids))


def _apart(logits_TV: Tensor, expected: Iterable[Tensor]) -> Tensor:
    """Relative difference of each token's logits from those that are expected, which are told part by part."""
    parts, done = [], 0
    for expected_TV in expected:
        part_TV = logits_TV[done : done + len(expected_TV)]
        parts.append((part_TV - expected_TV).float().norm(dim=-1) / expected_TV.float().norm(dim=-1))
        done += len(part_TV)
    return torch.cat(parts)


def _descended(pack: Pack) -> Tensor:
    """Whether each token has ancestors in other nodes [T]: they are few, and the median of all tokens would not tell if those were lost."""
    return torch.cat([torch.full((node.stop - node.start,), bool(pack.positions_T[node.start])) for node in pack.nodes])


def _packed(base: PreTrainedModel, pack: Pack) -> Tensor:
    """Logits of a pack's tokens."""
    ids_1T = torch.from_numpy(pack.ids_T)[None].to(base.device)
    logits_1TV: Tensor = base(input_ids=ids_1T, use_cache=False, **attention.arguments(Tree.of(pack), base.device)).logits
    return logits_1TV[0]


def _trial_rows(vocabulary: int) -> list[TokenRow]:
    """Three rows of random tokens, the longest first, as `bins` lays them; the last begins as the first does."""
    random = np.random.default_rng(0)
    first, second, last = (random.integers(0, vocabulary, length, np.int32) for length in TRIED)
    last[:MIN_SHARED] = first[:MIN_SHARED]
    return [TokenRow(ids=row, supervised=np.ones(len(row), np.bool_)) for row in (first, second, last)]

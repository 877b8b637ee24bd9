"""Which of a model's weights ranks divide for tensor parallelism, and how: by transformers' own plan for each architecture.

    by columns   y_i = x W_iᵀ      what the ranks send back to x adds up to its gradient     q, k, v, gate, up
    by rows      y = Σ x_i W_iᵀ    what the ranks compute adds up to the output              o, down
    experts      both, in one module: gate and up by columns, down by rows

(Shoeybi et al. 2019, arXiv 1909.08053.) Embedding, norms, routers and head are whole on every rank (docs/notes/tensor.md).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.errors import PlanRefused
from luthier.model.mesh import Axis

OUTPUTS, INPUTS = -2, -1
"""Dimensions of a matrix, or of a matrix per expert."""
HEADS = ("num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The dimension of a parameter that is divided, each of its `parts` alike: gate and up of fused experts are two."""

    dim: int
    parts: int = 1

    def of(self, whole: Tensor, axis: Axis) -> Tensor:
        """This rank's part, in memory of its own."""
        width = whole.shape[self.dim] // (self.parts * axis.size)
        shares: Tensor = whole.unflatten(self.dim, (self.parts, axis.size, width)).select(self.dim - 1, axis.index)  # type: ignore[no-untyped-call]
        return shares.flatten(self.dim - 1, self.dim).clone(memory_format=torch.contiguous_format)

    def whole_shape(self, part: Sequence[int], axis: Axis) -> torch.Size:
        """Of what `of` has cut to this shape."""
        shape = list(part)
        shape[self.dim] *= axis.size
        return torch.Size(shape)

    def divides(self, whole: Tensor, axis: Axis) -> bool:
        """Whether each rank has as much of it as the others."""
        return whole.shape[self.dim] % (self.parts * axis.size) == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How a module is divided among the ranks of an axis."""

    axis: Axis
    by: Literal["columns", "rows", "experts", "heads"]
    """`heads`: a norm of each head, whole, that sees this rank's heads only."""
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    """By the name of the module's own parameter."""
    outside: bool = False
    """Its outputs by columns are wanted whole, or its inputs by rows come so."""


COLUMNS = {"weight": Cut(dim=OUTPUTS), "bias": Cut(dim=-1)}
ROWS = {"weight": Cut(dim=INPUTS)}
EXPERTS = "moe_tp_experts"
OF_EXPERTS = {"packed_colwise": Cut(dim=OUTPUTS, parts=2), "colwise": Cut(dim=OUTPUTS), "rowwise": Cut(dim=INPUTS)}
"""What transformers' names mean for parameters of experts: expert × output × input."""

_divisions: WeakKeyDictionary[nn.Module, Division] = WeakKeyDictionary()


def division_of(layer: nn.Module) -> Division | None:
    """How a layer is divided, with an adapter or without; None where it is whole."""
    return _divisions.get(under_adapter(layer))


def cut_of(model: nn.Module, parameter: str) -> tuple[Cut, Axis] | None:
    """How a parameter is cut, by its name in a model or module, and among whom; None where it is whole."""
    module, _, own = parameter.rpartition(".")
    division = _divisions.get(model.get_submodule(module))
    return (division.cuts[own], division.axis) if division and own in division.cuts else None


def cut_under(layer: LoraLayer) -> tuple[Cut, Axis] | None:
    """How the parameter that an adapter is on is cut, and among whom; None where it is whole."""
    return cut_of(layer.get_base_layer(), layer.parameter_name if isinstance(layer, ParamWrapper) else "weight")


def take_over(module: nn.Module, other: nn.Module) -> None:
    """Let a module that takes the place of another be divided as that was."""
    if other in _divisions:
        _divisions[module] = _divisions[other]


def under_adapter(layer: nn.Module) -> nn.Module:
    """The layer that an adapter is on; itself, where it has none."""
    base: nn.Module = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    return base


def planned(model: PreTrainedModel, axis: Axis) -> Iterator[tuple[nn.Module, Division]]:
    """Each module to divide, and how; from then on `division_of` knows it. Raises PlanRefused for a model that cannot be divided so."""
    plan = {name: style for name, style in (model.tp_plan or {}).items() if not style.startswith("embedding")}
    head, refused = model.get_output_embeddings(), f"{model.config.model_type} cannot be divided among {axis.size} ranks"
    found = {name: module for name, module in model.named_modules() if _generic(name) in plan and module is not head}
    if not found:
        raise _refusal(f"{refused}: transformers has no plan for tensor parallelism of it")
    config = model.config.get_text_config().to_dict()
    divides_heads = any(name.endswith(".k_proj") and style == "colwise" for name, style in plan.items())
    if divides_heads and any(config.get(name, 0) % axis.size for name in HEADS):
        raise _refusal(f"{refused}: it has {' and '.join(f'{config[name]} {name}' for name in HEADS if name in config)}")
    used = set[str]()
    for name, module in found.items():
        division = _division(name, module, plan, axis)
        if division is None:
            raise _refusal(f"{refused}: its plan has {plan[_generic(name)]} for {name}, a {type(module).__name__}")
        for own, cut in division.cuts.items():
            whole = module._parameters.get(own)
            if whole is not None and not cut.divides(whole, axis):
                raise _refusal(f"{refused}: {name}.{own} has the shape {list(whole.shape)}")
        used |= {f"{name}.{own}" for own in division.cuts}
        _divisions[module] = division
        yield module, division
    if left := [name for name, _ in model.named_parameters() if _generic(name) in plan and name not in used]:
        raise _refusal(f"{refused}: its plan has {plan[_generic(left[0])]} for {left[0]}")


def _division(name: str, module: nn.Module, plan: Mapping[str, str], axis: Axis) -> Division | None:
    """By transformers' name for it; None for what is not known here."""
    style = plan[_generic(name)]
    if style == "replicated_with_grad_allreduce":
        return Division(axis=axis, by="heads")
    if style == EXPERTS:
        styles = {own: plan.get(_generic(f"{name}.{own}"), "") for own, _ in module.named_parameters(recurse=False)}
        known = all(styles[own] in OF_EXPERTS and weight.ndim == 3 for own, weight in module.named_parameters(recurse=False))
        return Division(axis=axis, by="experts", cuts={own: OF_EXPERTS[styles[own]] for own in styles}) if known else None
    if not isinstance(module, nn.Linear):
        return None
    match style:
        case "colwise" | "colwise_gather_output":
            return Division(axis=axis, by="columns", cuts=COLUMNS, outside=style != "colwise")
        case "rowwise" | "rowwise_split_input":
            return Division(axis=axis, by="rows", cuts=ROWS, outside=style != "rowwise")
    return None


def _refusal(what: str) -> PlanRefused:
    return PlanRefused(what, where="parallel.tensor", change="set parallel.tensor=1; parallel.shard=zero3 divides any model")


def _generic(name: str) -> str:
    """A name with `*` for the numbers of layers, as plans have it."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)

"""A mixture's experts, one after another: frozen matrices, in few bits or not, with the adapters that stand on them; its twin is
transformers' own module, under PEFT's `ParamWrapper` where it is adapted.

T = tokens, K = experts of a token, E = experts, n = tokens of one expert, D = hidden, O and I = features out and in, r = rank.

Both have all experts' weights in numbers at once, and PEFT adds s·B·A to all of them in every pass: of Qwen3-30B-A3B 1.2 GB a layer. Here
only the expert whose tokens are computed has a matrix, in each direction once. Since its tokens are at hand, its adapter is that of a
linear layer: dropout acts on what goes into A, by token and expert, and base and adapter are summed before they are rounded (trap 36).
For the backward pass the layer's input is kept, and each expert's gate and up; what stands between up and down is computed again.
"""

import functools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import ParamWrapper
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from luthier.model.dropout import TokenDropout
from luthier.model.pointwise import drop
from luthier.model.quantize import Form, QuantizedLinear

NAME = "luthier"
"""Under which transformers' ExpertsInterface knows it."""
PROJECTIONS = ("gate_up_proj", "down_proj")
"""The fused parameters of a mixture, as transformers names them; in this order PEFT nests their wrappers, the last outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertAdapter:
    """LoRA on all experts of a projection, as PEFT lays it out: A [E·r, I], B [O, r·E]."""

    a: nn.Parameter
    b: nn.Parameter
    num_experts: int
    scaling: float
    dropout: TokenDropout | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """One matrix of each expert [O, I], with its bias and its adapter."""

    weight: Tensor
    """A stack of matrices, or of their bytes."""
    form: Form | None
    transposed: bool
    """Plain ones that lie as [I, O]."""
    bias_EO: Tensor | None
    adapter: ExpertAdapter | None

    @property
    def width(self) -> int:
        """O."""
        rows, columns = self.form.shape if self.form else self.weight.shape[1:]
        return columns if self.transposed else rows

    def matrix(self, expert: int) -> Tensor:
        """The matrix [O, I] of an expert, in the compute type."""
        matrix = self.form.matrix(self.weight[expert]) if self.form else self.weight[expert].detach()
        return matrix.T if self.transposed else matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What computes a layer's experts."""

    module: nn.Module
    gate_up: Projection
    down: Projection

    def __call__(self, hidden_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """The sum of each token's experts, weighted [T, D]."""
        adapters = [one for projection in (self.gate_up, self.down) if (one := projection.adapter)]
        trained = [weight for adapter in adapters for weight in (adapter.a, adapter.b)]
        mixed_TD: Tensor = _Experts.apply(hidden_TD, weight_TK, index_TK, self, *trained)  # type: ignore[no-untyped-call]
        return mixed_TD

    def gated(self, gate_up: Tensor) -> Tensor:
        """What enters down: activation(gate)·up, or as the model's own module has it."""
        gated: Tensor = self.module._apply_gate(gate_up)  # type: ignore[operator]
        return gated


def is_mixture(module: nn.Module) -> bool:
    """Whether a module is one of transformers' that ask its ExpertsInterface how experts are computed, with gate and up as one."""
    return hasattr(type(module), "_apply_gate") and set(PROJECTIONS) <= dict(module.named_parameters(recurse=False)).keys()


def forms_of(experts: nn.Module) -> dict[str, Form]:
    """How each fused parameter of a mixture is stored, by its name; without those that are plain."""
    forms: dict[str, Form] = vars(experts).get("forms", {})
    return forms


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """What every parameter of a model is the numbers of, by its name, whether they are stored as they are or in few bits."""
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            found[f"{name}.weight"] = module.form.shape
        for parameter, form in forms_of(module).items():
            found[f"{name}.{parameter}"] = (len(getattr(module, parameter)), *form.shape)
    return found


def use_quantized(experts: Any, forms: dict[str, Form]) -> None:
    """Compute a mixture, whose parameters are or will be bytes of these forms, as above, adapted or not."""
    experts.forms = forms
    experts._is_hf_initialized = True  # transformers draws no numbers where bytes lack
    experts.config._experts_implementation = NAME


def install(model: nn.Module) -> None:
    """Compute every mixture whose experts have an adapter as above, where PEFT would add the adapter to the weights."""
    inside = {module.base_layer for module in model.modules() if isinstance(module, ParamWrapper)}
    for module in list(model.modules()):
        if isinstance(module, ParamWrapper) and module not in inside and is_mixture(module.get_base_layer()):
            module.forward = functools.partial(_adapted, weakref.ref(module))


def _adapted(held: Any, hidden_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """The forward of the outermost wrapper around a mixture; PEFT's own where adapters are switched off or merged."""
    outer = held()
    if outer.disable_adapters or outer.merged:
        plain: Tensor = type(outer).forward(outer, hidden_TD, index_TK, weight_TK)
        return plain
    adapters = {wrapper.parameter_name: _adapter(wrapper) for wrapper in _wrappers(outer)}
    return mixture_of(outer.get_base_layer(), adapters)(hidden_TD, index_TK, weight_TK)


def _wrappers(outer: ParamWrapper) -> Iterator[ParamWrapper]:
    """This one and those inside of it."""
    while isinstance(outer, ParamWrapper):
        yield outer
        outer = outer.base_layer


def _adapter(wrapper: ParamWrapper) -> ExpertAdapter:
    (name,) = wrapper.active_adapters
    dropout = wrapper.lora_dropout[name]
    return ExpertAdapter(
        a=wrapper.lora_A[name].weight,
        b=wrapper.lora_B[name].weight,
        num_experts=wrapper.num_experts,
        scaling=wrapper.scaling[name],
        dropout=dropout if isinstance(dropout, TokenDropout) and dropout.training else None,
    )


def mixture_of(experts: Any, adapters: dict[str, ExpertAdapter]) -> Mixture:
    """What computes a module's experts, with these adapters by the names of its parameters."""
    forms = forms_of(experts)
    gate_up, down = (
        Projection(
            weight=getattr(experts, name),
            form=forms.get(name),
            transposed=experts.is_transposed and name not in forms,
            bias_EO=getattr(experts, f"{name}_bias").detach() if experts.has_bias else None,
            adapter=adapters.get(name),
        )
        for name in PROJECTIONS
    )
    return Mixture(module=experts, gate_up=gate_up, down=down)


def _plain(experts: nn.Module, hidden_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    return mixture_of(experts, {})(hidden_TD, index_TK, weight_TK)


ALL_EXPERTS_FUNCTIONS.register(NAME, _plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """The tokens that were sent to one expert, n, and filled up to N with one that is zero, T."""

    expert: int
    pairs: slice
    """Theirs, of all pairs of token and expert in the order of experts."""
    tokens_N: Tensor
    places_N: Tensor
    """In the flat [T·K], and behind it."""

    num: int
    """n."""


def _sent(index_TK: Tensor) -> Iterator[_Sent]:
    """Each expert that has tokens."""
    order = index_TK.flatten().argsort(stable=True)
    numbers, counts = torch.unique(index_TK, return_counts=True)
    start = 0
    for expert, count in zip(numbers.tolist(), counts.tolist(), strict=True):  # a sync for each layer: what follows has their sizes
        pairs = slice(start, start + count)
        filled = F.pad(order[pairs], (0, _filled(count) - count if index_TK.is_cpu else 0), value=index_TK.numel())
        yield _Sent(expert=expert, pairs=pairs, num=count, tokens_N=filled // index_TK.shape[1], places_N=filled)
        start += count


def _filled(count: int) -> int:
    """N: few sizes, because a CPU's product of a new one costs 1 ms to set up, and no more than PRODUCTS_KEPT are kept: a step of 8 packs
    of 80 tokens, 4 layers of 8 experts, took 3.6 s with n, and 1.2 with N."""
    return 32 if count <= 32 else -(-count // 128) * 128


class _Lora:
    """A projection's adapter in one pass over the experts: its weights in the compute type, and in the backward pass their gradients."""

    def __init__(self, adapter: ExpertAdapter, dtype: torch.dtype, num_tokens: int) -> None:
        experts, rank = adapter.num_experts, len(adapter.a) // adapter.num_experts
        self._of = adapter
        self.a_ErI = adapter.a.detach().view(experts, rank, -1).to(dtype)
        self.b_EOr = (adapter.b.detach().view(-1, rank, experts).permute(2, 0, 1) * adapter.scaling).to(dtype).contiguous()
        self._keys_T = F.pad(adapter.dropout.known_keys(num_tokens), (0, 1)) if adapter.dropout else None
        self._d_a_ErI = self._d_b_EOr = torch.empty(0)

    def dropped(self, x: Tensor, sent: _Sent) -> Tensor:
        """What goes into A."""
        if self._of.dropout is None or self._keys_T is None:
            return x
        out = torch.empty_like(x)
        drop(x, self._keys_T[sent.tokens_N], self._of.dropout.salt_of(sent.expert), self._of.dropout.p, out, self._of.dropout.first)
        return out

    def backward(self, d_y: Tensor, x: Tensor, sent: _Sent, weight_N1: Tensor) -> Tensor:
        """The gradient of x through the adapter, for d_y as it is; the adapter's own is kept, for d_y as it is weighted."""
        if not self._d_a_ErI.numel():
            self._d_a_ErI, self._d_b_EOr = (torch.zeros_like(weight, dtype=torch.float32) for weight in (self.a_ErI, self.b_EOr))
        dropped, inner = self.dropped(x, sent), d_y @ self.b_EOr[sent.expert]
        self._d_a_ErI[sent.expert] = (weight_N1 * inner).T @ dropped
        self._d_b_EOr[sent.expert] = (weight_N1 * d_y).T @ (dropped @ self.a_ErI[sent.expert].T)
        return self.dropped(inner @ self.a_ErI[sent.expert], sent)  # dropout's gradient is its mask and scale again

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of A and B, as PEFT lays them out."""
        d_b_OrE = self._d_b_EOr.mul_(self._of.scaling).permute(1, 2, 0)
        return self._d_a_ErI.view_as(self._of.a), d_b_OrE.reshape(self._of.b.shape)


class _Pass:
    """A projection in one pass over the experts of a layer."""

    def __init__(self, projection: Projection, dtype: torch.dtype, num_tokens: int) -> None:
        self.of = projection
        self.lora = _Lora(projection.adapter, dtype, num_tokens) if projection.adapter else None

    def forward(self, x: Tensor, sent: _Sent) -> Tensor:
        """The expert's outputs [N, O]."""
        matrix_OI, y = self.of.matrix(sent.expert), x.new_empty(len(x), self.of.width)
        if self.lora:  # first, so that base and adapter are summed in float32 and rounded once
            down = self.lora.dropped(x, sent) @ self.lora.a_ErI[sent.expert].T
            torch.mm(down, self.lora.b_EOr[sent.expert].T, out=y)
            y.addmm_(x, matrix_OI.T)
        else:
            torch.mm(x, matrix_OI.T, out=y)
        if self.of.bias_EO is not None:
            y += self.of.bias_EO[sent.expert]
        return y

    def backward(self, d_y: Tensor, x: Tensor, sent: _Sent, weight_N1: Tensor) -> Tensor:
        """The gradient of x for d_y as it is; see `_Lora.backward`."""
        d_x = d_y @ self.of.matrix(sent.expert)
        return d_x if self.lora is None else d_x.add_(self.lora.backward(d_y, x, sent, weight_N1))


class _Experts(torch.autograd.Function):
    """Σ over a token's experts e: w_e · down_e(gated(gate_up_e(h))).

    The gradient of w_e is ⟨d_y, down_e(a)⟩ = ⟨down_eᵀ(d_y), a⟩ (and its bias): no expert's output is kept or computed again.
    """

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_TK: Tensor, index_TK: Tensor, mixture: Mixture, *trained: Tensor) -> Tensor:
        gate_up, down = _passes(mixture, hidden_TD)
        sent, keep = list(_sent(index_TK)), any(ctx.needs_input_grad)
        kept = hidden_TD.new_empty(index_TK.numel() if keep else 0, gate_up.of.width)
        filled_TD, weights = _filled_up(hidden_TD), _filled_up(weight_TK.flatten())
        mixed_TD = torch.zeros_like(filled_TD, dtype=torch.float32)
        for one in sent:
            wide = gate_up.forward(filled_TD[one.tokens_N], one)
            y = down.forward(mixture.gated(wide), one)
            mixed_TD.index_add_(0, one.tokens_N, y * weights[one.places_N][:, None].float())
            if keep:
                kept[one.pairs] = wide[: one.num]
        ctx.of = mixture, sent
        ctx.save_for_backward(hidden_TD, weight_TK, kept)
        return mixed_TD[:-1].to(hidden_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        (mixture, sent), (hidden_TD, weight_TK, kept) = ctx.of, ctx.saved_tensors
        gate_up, down = _passes(mixture, hidden_TD)
        filled_TD, weights, grad_TD = _filled_up(hidden_TD), _filled_up(weight_TK.flatten()), _filled_up(grad_TD)
        d_hidden_TD, d_weights = torch.zeros_like(filled_TD, dtype=torch.float32), torch.zeros_like(weights)
        for one in sent:
            d_y, weight_N1 = grad_TD[one.tokens_N], weights[one.places_N][:, None].to(grad_TD.dtype)
            with torch.enable_grad():  # transformers' own activation, whatever it is
                wide = F.pad(kept[one.pairs], (0, 0, 0, len(d_y) - one.num)).requires_grad_()
                gated = mixture.gated(wide)
            d_gated = down.backward(d_y, gated.detach(), one, weight_N1)
            d_weight = (d_gated * gated.detach()).sum(-1, dtype=torch.float32)
            if mixture.down.bias_EO is not None:
                d_weight += d_y @ mixture.down.bias_EO[one.expert]
            d_weights[one.places_N] = d_weight.to(d_weights.dtype)
            (d_wide,) = torch.autograd.grad(gated, wide, d_gated * weight_N1)
            d_x = gate_up.backward(d_wide, filled_TD[one.tokens_N], one, torch.ones_like(weight_N1))
            d_hidden_TD.index_add_(0, one.tokens_N, d_x.float())
        trained = [gradient for one in (gate_up, down) if one.lora for gradient in one.lora.gradients()]
        return d_hidden_TD[:-1].to(hidden_TD.dtype), d_weights[:-1].view_as(weight_TK), None, None, *trained


def _filled_up(values: Tensor) -> Tensor:
    """With a row of zeros behind the last."""
    return torch.cat([values, values.new_zeros(1, *values.shape[1:])])


def _passes(mixture: Mixture, hidden_TD: Tensor) -> tuple[_Pass, _Pass]:
    gate_up, down = (_Pass(one, hidden_TD.dtype, len(hidden_TD)) for one in (mixture.gate_up, mixture.down))
    return gate_up, down

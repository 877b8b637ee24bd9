"""A mixture's experts one by one, against transformers' own modules under PEFT's wrapper with the same numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from luthier.model.adapt import add_lora, load_adapter
from luthier.model.dropout import TokenDropout, draw, install
from luthier.model.experts import is_mixture, mixture_of
from luthier.model.pointwise import drop
from luthier.recipe.schema import Lora
from luthier.train.objective import nll_sum
from tests.model.zoo import (
    MIXTURES,
    VOCABULARY,
    adapted,
    assert_plain,
    by_peft,
    gradients,
    in_numbers,
    in_packs,
    plain_loss,
    quantized,
    shared_rows,
    tiny,
)

ROWS = shared_rows()[:6]
EXPERTS: dict[str, Any] = {"target_parameters": "experts"}


def mixtures(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if is_mixture(module))


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
def test_loss_and_every_gradient_are_those_of_the_plain_twin(family: str, kind: str) -> None:
    base = tiny(family) if kind == "none" else quantized(tiny(family), kind)
    twin = by_peft(adapted(in_numbers(base), **EXPERTS))
    model = adapted(base, **EXPERTS)
    loss, expected = plain_loss(model, ROWS), plain_loss(twin, ROWS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    assert_plain(gradients(model), gradients(twin))


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("kind", ["int8", "fp4"])
def test_a_quantised_mixture_answers_as_its_plain_twin_without_an_adapter_and_under_one_that_is_switched_off(
    family: str, kind: str
) -> None:
    base = quantized(tiny(family), kind)
    ids, twin = torch.arange(40)[None] % VOCABULARY, in_numbers(base)
    with torch.no_grad():
        expected = twin(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(base.eval()(input_ids=ids, use_cache=False).logits, expected)
        model = adapted(base, **EXPERTS).eval()
        assert (model(input_ids=ids, use_cache=False).logits - expected).norm() > 0.01 * expected.norm()
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, expected)


def layer_inputs(experts: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, and the experts that they are sent to, with their weights."""
    generator = torch.Generator().manual_seed(5)
    hidden_TD = torch.randn(11, 48, generator=generator)
    weight_TE = torch.randn(11, experts.num_experts, generator=generator).softmax(-1)
    weight_TK, index_TK = weight_TE.topk(2)
    return hidden_TD.requires_grad_(), index_TK, weight_TK.detach().requires_grad_()


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_the_gradients_of_hidden_states_and_routing_weights_are_transformers_own(family: str) -> None:
    (experts, _) = mixtures(tiny(family))
    (hidden, index, weight), (same_hidden, _, same_weight) = layer_inputs(experts), layer_inputs(experts)
    mixed, expected = mixture_of(experts, {})(hidden, index, weight), experts(same_hidden, index, same_weight)
    torch.testing.assert_close(mixed, expected)
    mixed.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(hidden.grad, same_hidden.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(weight.grad, same_weight.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", MIXTURES)
def test_after_one_step_every_adapted_part_has_a_gradient(family: str) -> None:  # trap 17
    model = adapted(quantized(tiny(family), "nf4"), **EXPERTS)
    plain_loss(model.train(), shared_rows()).backward()  # type: ignore[no-untyped-call]
    found = gradients(model)
    assert sum("experts" in name for name in found) == 2 * 2 * 2  # layers × projections × A and B
    assert [name for name, gradient in found.items() if not gradient.abs().max() > 0] == []


def test_an_expert_without_a_token_is_not_computed_and_has_no_gradient() -> None:
    base = quantized(tiny("qwen3_moe"), "nf4")
    model = adapted(base, **EXPERTS)
    (wrapper, _) = (
        module for module in model.modules() if type(module).__name__ == "ParamWrapper" and module.parameter_name == "down_proj"
    )
    hidden = torch.randn(5, 48, requires_grad=True)
    wrapper(hidden, torch.tensor([[1, 3]]).expand(5, 2), torch.full((5, 2), 0.5)).sum().backward()
    a_ErI = wrapper.lora_A["default"].weight.grad.view(4, -1, 32)
    assert [bool(a_rI.any()) for a_rI in a_ErI] == [False, True, False, True]


def reference(module: Any, drawn: dict[str, Tensor], scaling: float, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """The same by autograd, token by token, with the masks that `drawn` holds for each projection, expert and token."""
    factors = {wrapper.parameter_name: wrapper for wrapper in module.wrappers}
    out = []
    for token, (h, experts, weights) in enumerate(zip(hidden, index.tolist(), weight, strict=True)):
        y = torch.zeros_like(h)
        for expert, w in zip(experts, weights, strict=True):
            x = h
            for name in ("gate_up_proj", "down_proj"):
                if name == "down_proj":
                    gate, up = x.chunk(2)
                    x = F.silu(gate) * up
                wrapper = factors[name]
                a = wrapper.lora_A["default"].weight.view(4, -1, len(x))[expert]
                b = wrapper.lora_B["default"].weight.view(-1, len(a), 4)[:, :, expert]
                x = module.matrix(name, expert) @ x + scaling * b @ (a @ (x * drawn[name][expert, token]))
            y = y + w * x
        out.append(y)
    return torch.stack(out)


class Dropped:
    """A quantised layer's experts with an adapter, dropout and the masks that follow from its tokens."""

    def __init__(self) -> None:
        self.model = adapted(quantized(tiny("qwen3_moe"), "nf4"), dropout=0.4, **EXPERTS).train()
        install(self.model)
        self.outer = self.model.get_base_model().model.layers[0].mlp.experts
        self.wrappers = [self.outer, self.outer.base_layer]
        self.experts = self.outer.get_base_layer()
        self.hidden, self.index, self.weight = layer_inputs(self.experts)
        keys = torch.randint(-(2**62), 2**62, (11,), generator=torch.Generator().manual_seed(1))
        draw(self.model, keys, torch.arange(3), (7, 1))

    def matrix(self, name: str, expert: int) -> Tensor:
        return self.experts.forms[name].matrix(getattr(self.experts, name)[expert])

    def masks(self) -> dict[str, Tensor]:
        """Of each projection, expert and token: what the dropout makes of ones."""
        found = {}
        for wrapper, width in zip(self.wrappers, (32, 48), strict=True):
            dropout: TokenDropout = wrapper.lora_dropout["default"]
            found[wrapper.parameter_name] = masks = torch.empty(4, 11, width)
            for expert, mask in enumerate(masks):
                drop(torch.ones_like(mask), dropout.known_keys(11), dropout.salt_of(expert), dropout.p, mask)
        return found


def test_dropout_acts_on_what_goes_into_an_adapter_by_token_and_expert() -> None:
    of = Dropped()
    masks = of.masks()
    for mask in masks.values():
        assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
        assert mask.eq(0).float().mean().item() == pytest.approx(0.4, abs=0.06)
        assert not torch.equal(mask[0], mask[1])
    mixed = of.outer(of.hidden, of.index, of.weight)
    expected = reference(of, masks, 2.0, of.hidden, of.index, of.weight)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
    trained = [of.hidden, of.weight, *(half["default"].weight for one in of.wrappers for half in (one.lora_A, one.lora_B))]
    found, wanted = (torch.autograd.grad(y.square().sum(), trained) for y in (mixed, expected))
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4)


def test_experts_that_are_not_drawn_for_are_told() -> None:
    of = Dropped()
    with pytest.raises(ValueError, match="draw was not called"):
        of.outer(of.hidden[:5], of.index[:5], of.weight[:5])


def test_an_adapter_that_was_trained_with_dropout_is_plain_peft_on_the_plain_base(tmp_path: Path) -> None:
    base = quantized(tiny("qwen3_moe"), "nf4")
    model = adapted(base, dropout=0.3, **EXPERTS).eval()
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        theirs = PeftModel.from_pretrained(in_numbers(quantized(tiny("qwen3_moe"), "nf4")), str(tmp_path)).eval()
        torch.testing.assert_close(theirs(input_ids=ids, use_cache=False).logits, expected)
        again = load_adapter(quantized(tiny("qwen3_moe"), "nf4"), tmp_path)
        torch.testing.assert_close(again(input_ids=ids, use_cache=False).logits, expected)


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_one_experts_matrix_is_in_numbers_at_a_time_and_none_is_kept(kind: str) -> None:
    """An adapter's product with all experts would be 8 × 64 × 96 numbers, and their sum with the weights as many again."""
    model = tiny("qwen3_moe", hidden_size=96, num_experts=8, num_experts_per_tok=2, num_hidden_layers=1)
    base = model if kind == "none" else quantized(model, kind)
    trained = add_lora(base, Lora(r=2, alpha=4, target_modules=("q_proj",), **EXPERTS), seed=0).train()
    (batch,) = in_packs(ROWS[:2], "off")
    own = {parameter.untyped_storage().data_ptr() for parameter in trained.parameters()}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.extend([tensor] if tensor.untyped_storage().data_ptr() not in own else [])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nll_sum(trained, batch)
    assert not [tensor.shape for tensor in kept if tensor.numel() >= 8 * 64 * 96]

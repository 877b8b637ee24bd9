"""A quantised base in packs through the engine equals padded rows through transformers and PEFT over the numbers that its bytes are."""

import functools

import pytest
import torch
from torch import Tensor

from luthier.model.fuse import fuse
from luthier.model.place import trained_of
from luthier.recipe.schema import Training
from luthier.train.optim import make_optimizer
from luthier.train.precision import Precision
from luthier.train.step import train_step
from tests.model.zoo import (
    CPU,
    FAMILIES,
    LONGEST,
    MIXTURES,
    adapted,
    assert_plain,
    by_peft,
    engine_loss,
    gradients,
    in_numbers,
    in_packs,
    plain_loss,
    quantized,
    shared_rows,
    tiny,
)

KINDS = {"int8": ("int8", False), "nf4": ("nf4", False), "nf4, double": ("nf4", True), "fp4": ("fp4", True)}


@functools.cache
def plain(family: str, kind: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of all rows, padded, by transformers and PEFT, in float32."""
    name, double = KINDS[kind]
    model = by_peft(adapted(in_numbers(quantized(tiny(family), name, double_quant=double)))).train()
    loss = plain_loss(model, shared_rows())
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), gradients(model)


@pytest.mark.parametrize("packing", ["off", "bins", "tree"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_every_gradient_are_those_of_the_plain_twin(family: str, kind: str, packing: str) -> None:
    name, double = KINDS[kind]
    model = adapted(quantized(tiny(family), name, double_quant=double)).train()
    fusion = fuse(model, pack=packing != "off", longest=LONGEST)
    assert fusion.num_layers == (0 if packing == "off" else 2), fusion.reasons
    loss, expected = plain(family, kind)
    assert engine_loss(model, in_packs(shared_rows(), packing)) == pytest.approx(loss, rel=1e-6)
    assert_plain(gradients(model), expected)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_recomputed_activations_change_nothing(family: str) -> None:
    base = quantized(tiny(family), "nf4")
    base.activation_checkpointing_enable({"use_reentrant": False})
    model = adapted(base).train()
    assert fuse(model, pack=True, longest=LONGEST).engine == "fused"
    loss, expected = plain(family, "nf4, double")
    assert engine_loss(model, in_packs(shared_rows(), "tree")) == pytest.approx(loss, rel=1e-6)
    assert_plain(gradients(model), expected)


@pytest.mark.parametrize("family", [family for family in MIXTURES if family in ("qwen3_next", "qwen3_5_moe_text")])
def test_a_mixture_behind_linear_attention_is_padded_because_its_packs_would_leak(family: str) -> None:  # trap 4
    model = adapted(quantized(tiny(family), "nf4"), target_parameters="experts").train()
    fusion = fuse(model, pack=True, longest=LONGEST)
    assert (fusion.packs, fusion.engine) == (False, "plain")
    assert fusion.reasons == ("rows of a pack leak through layers with a state: linear_attention",)
    twin = by_peft(adapted(in_numbers(quantized(tiny(family), "nf4")), target_parameters="experts")).train()
    expected = plain_loss(twin, shared_rows())
    expected.backward()  # type: ignore[no-untyped-call]
    assert engine_loss(model, in_packs(shared_rows(), "off")) == pytest.approx(expected.item(), rel=1e-6)
    assert_plain(gradients(model), gradients(twin))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_eight_steps_lead_where_those_over_the_numbers_lead(family: str, dropout: float) -> None:
    trained = []
    for base in (quantized(tiny(family), "nf4"), in_numbers(quantized(tiny(family), "nf4"))):
        model = adapted(base, dropout=dropout)
        assert fuse(model, pack=True, longest=LONGEST).engine == "fused"
        optimizer = make_optimizer(trained_of(model), Training(learning_rate=1e-2))
        for step in range(8):
            batches = in_packs(shared_rows(), "tree")
            train_step(model.train(), optimizer, batches, precision=Precision.of(torch.float32, CPU), max_norm=1.0, seeds=(3, step))
        trained.append({name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad})
    assert_plain(*trained, tolerance=1e-4)

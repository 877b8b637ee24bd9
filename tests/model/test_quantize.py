"""Matrices in few bits: the numbers, the bytes, the product, and what neither fetches nor prints anything."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.model.adapt import add_lora
from luthier.model.quantize import Form, QuantizedLinear, library
from luthier.recipe.schema import Lora
from tests.model.zoo import quantized, tiny

KINDS = [("int8", False), ("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True)]
SHAPES = [(48, 80), (30, 50), (7, 33), (64, 128)]
"""Rows that end within a block of 64, matrices that do, and odd ones."""
NF4 = (-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.091050036, 0.0)
NF4 = (*NF4, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)  # QLoRA, appendix E
LARGEST_ERROR = {"int8": 1 / 127 / 2, "nf4": (1.0 - 0.6961928) / 2, "fp4": 1 / 6}
"""Of a number, in parts of the largest that shares its constant: half of the widest gap between codes."""


def form(kind: Any, shape: tuple[int, int], *, double: bool = False, dtype: torch.dtype = torch.float32) -> Form:
    return Form(kind=kind, double_quant=double, shape=shape, dtype=dtype)


def matrix(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1).to(dtype)


def largest_beside(weight: Tensor, kind: str) -> Tensor:
    """For each number, the largest of its row or block."""
    if kind == "int8":
        return weight.abs().amax(dim=1, keepdim=True).expand_as(weight)
    blocks = nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    return blocks.abs().amax(dim=1, keepdim=True).expand_as(blocks).flatten()[: weight.numel()].view_as(weight)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_every_number_is_within_half_a_gap_of_what_it_was(kind: str, double: bool, shape: tuple[int, int]) -> None:
    weight, of = matrix(shape), form(kind, shape, double=double)
    stored = of.quantize(weight)
    assert (stored.dtype, stored.shape, stored.requires_grad) == (torch.uint8, (of.num_bytes,), False)
    allowed = largest_beside(weight, kind) * LARGEST_ERROR[kind] * (1.1 if double else 1.0001)
    assert ((of.matrix(stored) - weight).abs() <= allowed).all()


def test_nf4_takes_the_nearest_of_its_sixteen_values() -> None:
    weight, of = matrix((30, 50)), form("nf4", (30, 50))
    largest = largest_beside(weight, "nf4")
    nearest = torch.tensor(NF4)[((weight / largest)[..., None] - torch.tensor(NF4)).abs().argmin(dim=-1)] * largest
    torch.testing.assert_close(of.matrix(of.quantize(weight)), nearest, rtol=1e-6, atol=1e-8)


def test_int8_rounds_each_row_to_127_steps_of_its_largest() -> None:
    weight, of = matrix((7, 33)), form("int8", (7, 33))
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    torch.testing.assert_close(of.matrix(of.quantize(weight)), (weight / step).round() * step, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_zeros_stay_zeros_and_what_is_computed_in_bfloat16_is_the_same_numbers_rounded(kind: str, double: bool) -> None:
    weight = matrix((64, 128))
    weight[3], weight[40:] = 0.0, 0.0
    wide, narrow = form(kind, (64, 128), double=double), form(kind, (64, 128), double=double, dtype=torch.bfloat16)
    stored = wide.quantize(weight)
    assert not wide.matrix(stored)[40:].any() or double  # a double-quantised zero block has a largest that is nearly zero
    assert wide.matrix(stored)[40:].abs().max() <= 1e-3
    assert torch.equal(narrow.matrix(stored), wide.matrix(stored).bfloat16())


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_each_matrix_of_a_stack_is_as_it_would_be_alone(kind: str, double: bool) -> None:
    stack, of = matrix((3, 30, 50)), form(kind, (30, 50), double=double)
    stored = of.quantize(stack)
    assert stored.shape == (3, of.num_bytes)
    for index, one in enumerate(stack):
        assert torch.equal(stored[index], of.quantize(one))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_large_matrix_is_quantised_part_by_part_to_the_same_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, of = matrix((64, 128)), form(kind, (64, 128))
    whole = of.quantize(weight)
    monkeypatch.setattr("luthier.model.quantize.QUANTIZED_AT_ONCE", 640)
    assert torch.equal(of.quantize(weight), whole)


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_the_product_and_its_gradient_are_those_of_a_plain_layer_with_the_numbers(kind: str, double: bool) -> None:
    of, bias = form(kind, (48, 80), double=double), nn.Parameter(matrix((48,)), requires_grad=False)
    layer = QuantizedLinear(of, of.quantize(matrix((48, 80))), bias)
    x, same = (matrix((2, 5, 80)).requires_grad_() for _ in range(2))
    y, expected = layer(x), nn.functional.linear(same, of.matrix(layer.weight), bias)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(x.grad, same.grad)


def test_nothing_but_the_bytes_is_kept_for_the_backward_pass() -> None:
    of = form("nf4", (48, 80))
    layer, kept = QuantizedLinear(of, of.quantize(matrix((48, 80))), None), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(matrix((5, 80)).requires_grad_())
    assert [tensor.data_ptr() for tensor in kept] == [layer.weight.data_ptr()]


def test_a_cast_of_the_model_does_not_reach_the_bytes() -> None:
    model = quantized(tiny("qwen3"), "nf4")
    before = model.model.layers[0].self_attn.q_proj.dequantize()
    assert torch.equal(model.to(torch.bfloat16).model.layers[0].self_attn.q_proj.dequantize(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_adapters_are_float32_whatever_the_base_computes_in(family: str, dtype: torch.dtype) -> None:
    model = add_lora(quantized(tiny(family, dtype), "nf4"), Lora(), seed=0)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}


def test_pefts_dora_knows_the_numbers() -> None:
    model = add_lora(quantized(tiny("qwen3"), "nf4"), Lora(use_dora=True), seed=0)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    norms = layer.base_layer.dequantize().norm(dim=1)
    torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight.detach(), norms)
    ids = torch.arange(9)[None]
    plain = quantized(tiny("qwen3"), "nf4")(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, plain)  # B is zero, and the lengths are the rows' own


def test_a_merge_into_bytes_fails_rather_than_lose_the_adapter() -> None:
    model = add_lora(quantized(tiny("qwen3"), "nf4"), Lora(), seed=0)
    with pytest.raises(RuntimeError):
        model.merge_adapter()


def run(code: str, packages: Path | str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)


def test_no_kernel_is_fetched_from_the_hub_and_nothing_is_printed(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(
        f"def get_kernel(*names, **options):\n    open({str(asked)!r}, 'w').write(str(names))\n"
    )
    for packages in ("", tmp_path):  # without the package that fetches kernels, and with it
        ended = run("import luthier.model.adapt, sys\nassert {'bitsandbytes', 'peft'} <= sys.modules.keys()", packages)
        assert (ended.returncode, ended.stdout) == (0, "")
        assert "bitsandbytes" not in ended.stderr and "kernel" not in ended.stderr
    assert not asked.exists()
    assert run("import luthier.model, kernels\nassert kernels.get_kernel", tmp_path).returncode == 0  # others find it as it was


def test_bitsandbytes_still_asks_for_such_a_kernel_by_itself() -> None:
    """Else `patches.load_bitsandbytes` has nothing left to do on processors with AVX512-BF16."""
    has = "from bitsandbytes.functional import has_avx512bf16\nprint(bool(has_avx512bf16()))"
    ended = run(f"import bitsandbytes\n{has}")
    if ended.stdout.strip() != "True":
        pytest.skip("bitsandbytes wants no kernel for this processor")
    assert "kernels-community" in ended.stderr


def test_without_bitsandbytes_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    with pytest.raises(ModelError, match=r"not installed\n.*luthier\[quant\]"):
        library()
    with pytest.raises(ModelError, match="bitsandbytes"):
        form("nf4", (48, 80)).quantize(matrix((48, 80)))
    form("int8", (48, 80)).quantize(matrix((48, 80)))  # which is arithmetic

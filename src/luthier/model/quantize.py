"""Frozen matrices in few bits: int8 by rows, nf4 and fp4 in blocks of 64 (QLoRA, arXiv:2305.14314). bitsandbytes is used here only.

O = features out, I = features in, E = experts.  A matrix [O, I] is kept as a row of bytes, constants included, a stack [E, O, I] as E rows:
a uint8 parameter that stands where the numbers stood and goes wherever parameters go (to a device, in shards, to other ranks); no cast of
a model's floating point reaches it. What it is multiplied with is the matrix in the compute type, made for one product and gone after it:
the result is, bit for bit, that of a plain layer with those numbers.

    nf4, fp4   codes, two a byte | a float32 of each block
               codes, two a byte | a float32 of each 256 blocks, their offset | a byte of each block      (double quantisation)
    int8       a float32 of each row | int8
"""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from luthier.core.errors import ModelError
from luthier.plan.weights import BLOCK, NESTED_BLOCK, QUANTIZED_AT_ONCE, quantized_bytes

CACHED = 1 << 17
"""Numbers that a core's cache holds in float32."""


def library() -> Any:
    """bitsandbytes; raises ModelError where it is not installed."""
    if "bitsandbytes" not in sys.modules:  # where luthier.model itself has put it, if it is there
        change = "install it: pip install -c constraints.txt 'luthier[quant]'"
        raise ModelError("4-bit weights and 8-bit optimizers are bitsandbytes', which is not installed", change=change)
    return sys.modules["bitsandbytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a matrix [O, I], or each of a stack of them, is stored, and the type that it is computed in."""

    kind: Literal["int8", "nf4", "fp4"]
    double_quant: bool
    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of one matrix."""
        return quantized_bytes(self.kind, self.double_quant, *self.shape)

    @property
    def num_blocks(self) -> int:
        """Of 64 numbers in one matrix, the last one filled up."""
        return -(-self.shape[0] * self.shape[1] // BLOCK)

    def quantize(self, weight: Tensor) -> nn.Parameter:
        """The bytes of a matrix [O, I], or of a stack of them [E, O, I]; raises ModelError where they are bitsandbytes' to make."""
        if weight.shape[-2:] != self.shape:
            raise ValueError(f"a matrix of {tuple(weight.shape[-2:])} is not of the config's {self.shape}")
        stored = torch.zeros(*weight.shape[:-2], self.num_bytes, dtype=torch.uint8, device=weight.device)
        for row, matrix in zip(stored.view(-1, self.num_bytes), weight.detach().reshape(-1, *self.shape), strict=True):
            if self.kind == "int8":
                self._store_int8(row, matrix)
            else:
                self._store_4bit(row, matrix)
        return parameter_of(stored, weight.shape)

    def matrix(self, stored: Tensor) -> Tensor:
        """The numbers [O, I] of one matrix's bytes, in the compute type."""
        if self.kind == "int8":
            return self._int8_matrix(stored)
        # As rows of one block: bitsandbytes 0.50.2 on a CPU gives wrong numbers for rows that end within one, such as those of 80
        codes, constants, rows = *self._4bit_parts(stored), [self.num_blocks, BLOCK]
        numbers: Tensor = torch.ops.bitsandbytes.dequantize_4bit(codes, self._absmax(constants), BLOCK, self.kind, rows, self.dtype)
        return numbers.view(-1)[: self.shape[0] * self.shape[1]].view(self.shape)

    def _int8_parts(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the scales [O, 1] and the codes [O, I]."""
        rows, columns = self.shape
        scales, codes = stored[: 4 * rows], stored[4 * rows : 4 * rows + rows * columns]
        return scales.view(torch.float32)[:, None], codes.view(torch.int8).view(rows, columns)

    def _int8_matrix(self, stored: Tensor) -> Tensor:
        """The product of codes and scales in float32, rounded once; on a CPU in parts that stay in its cache, in half the time."""
        scale_O1, codes_OI = self._int8_parts(stored)
        matrix_OI = torch.empty(self.shape, dtype=self.dtype, device=stored.device)
        step = max(1, CACHED // self.shape[1]) if stored.is_cpu else self.shape[0]
        for start in range(0, self.shape[0], step):
            part = slice(start, start + step)
            matrix_OI[part] = codes_OI[part] * scale_O1[part]
        return matrix_OI

    def _store_int8(self, row: Tensor, matrix_OI: Tensor) -> None:
        scale_O1, codes_OI = self._int8_parts(row)
        scale_O1.copy_(matrix_OI.abs().amax(dim=1, keepdim=True).float() / 127)
        step = max(1, QUANTIZED_AT_ONCE // self.shape[1])
        for start in range(0, self.shape[0], step):
            part = slice(start, start + step)
            codes_OI[part] = (matrix_OI[part].float() / scale_O1[part].clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)

    def _4bit_parts(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the codes of whole blocks, and of what stands behind them."""
        end = self.num_blocks * BLOCK // 2
        return stored[:end], stored[end:]

    def _constants(self, constants: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of double quantisation: views of the float32 of each 256 blocks, their offset [1], and the byte of each block."""
        nested = -(-self.num_blocks // NESTED_BLOCK)
        floats = constants[: 4 * (nested + 1)].view(torch.float32)
        return floats[:nested], floats[nested:], constants[4 * (nested + 1) :][: self.num_blocks]

    def _store_4bit(self, row: Tensor, matrix_OI: Tensor) -> None:
        bitsandbytes = library()
        flat = matrix_OI.reshape(-1)
        codes, constants = self._4bit_parts(row)
        absmax = torch.empty(self.num_blocks, dtype=torch.float32, device=flat.device)
        for start in range(0, len(flat), QUANTIZED_AT_ONCE):
            part, largest = torch.ops.bitsandbytes.quantize_4bit(flat[start : start + QUANTIZED_AT_ONCE], BLOCK, self.kind, torch.uint8)
            codes[start // 2 :][: len(part)] = part.view(-1)
            absmax[start // BLOCK :][: len(largest)] = largest
        if not self.double_quant:
            constants[: 4 * len(absmax)].view(torch.float32).copy_(absmax)
            return
        largest, offset, code8 = self._constants(constants)
        offset.copy_(absmax.mean())
        quantized, state = bitsandbytes.functional.quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
        code8.copy_(quantized)
        largest.copy_(state.absmax)

    def _absmax(self, constants: Tensor) -> Tensor:
        """The largest of each block."""
        if not self.double_quant:
            return constants[: 4 * self.num_blocks].view(torch.float32)
        largest, offset, code8 = self._constants(constants)
        blocks: Tensor = library().functional.dequantize_blockwise(code8, absmax=largest, blocksize=NESTED_BLOCK)
        return blocks.add_(offset)


def parameter_of(stored: Tensor, shape: torch.Size) -> nn.Parameter:
    """The frozen parameter of a matrix's bytes, or of a stack's, which PEFT asks for its shape as ZeRO-3's are asked."""
    parameter = nn.Parameter(stored, requires_grad=False)
    if len(shape) == 3:
        parameter.ds_shape = shape  # type: ignore[attr-defined]
    return parameter


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is a matrix's bytes."""

    _is_hf_initialized = True
    """transformers draws no numbers for it where the bytes lack."""

    def __init__(self, form: Form, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make the numbers
        self.form = form
        self.out_features, self.in_features = form.shape
        self.weight = weight
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:
        """The product with the matrix, which is made for it and again for the backward pass, and not kept between."""
        y: Tensor = _Product.apply(input.to(self.form.dtype), self.weight, self.form)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias

    def dequantize(self) -> Tensor:
        """The matrix [O, I]. PEFT's DoRA asks for it where a layer has a `W_q`, as HQQ's have."""
        return self.form.matrix(self.weight)

    @property
    def W_q(self) -> Tensor:
        """See `dequantize`."""
        return self.weight

    def extra_repr(self) -> str:
        """What printing a model shows."""
        return f"{super().extra_repr()}, {self.form.kind}"


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, form: Form) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(stored)
        return F.linear(x, form.matrix(stored))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (stored,) = ctx.saved_tensors
        return grad @ ctx.form.matrix(stored), None, None

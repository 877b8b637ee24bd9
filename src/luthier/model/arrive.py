"""What becomes of a base model's weights as transformers reads them: each is cut to this rank's part, where ranks divide it, and stored in
few bits, where the recipe says so, before the next one comes.

transformers calls a quantizer for that: with the model while it is empty, then with each weight as the model wants it, experts fused.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from luthier.model import experts
from luthier.model.division import cut_of, take_over
from luthier.model.mesh import UNDIVIDED, Axis
from luthier.model.quantize import Form, QuantizedLinear, parameter_of
from luthier.model.tensor import divide

NAME = "luthier"
"""Under which transformers knows the quantizer."""


@register_quantization_config(NAME)
@dataclass
class Bits(QuantizationConfigMixin):  # type: ignore[misc]
    """Few bits, as `from_pretrained` takes them; and which ranks divide the matrices."""

    quant_method: str = NAME
    kind: Literal["none", "int8", "nf4", "fp4"] = "nf4"
    double_quant: bool = True
    dtype: torch.dtype = torch.bfloat16
    axis: Axis = UNDIVIDED.tensor

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # as of all configs transformers makes a copy, and there is none of a process group

    def to_dict(self) -> dict[str, Any]:
        """Without the ranks."""
        return {"quant_method": self.quant_method, "kind": self.kind, "double_quant": self.double_quant, "dtype": str(self.dtype)}

    def form(self, rows: int, columns: int) -> Form:
        """Of a matrix, or of each of a stack."""
        if self.kind == "none":
            raise ValueError("numbers that are kept as they are have no form")
        return Form(kind=self.kind, double_quant=self.double_quant, shape=(rows, columns), dtype=self.dtype)


def store(model: PreTrainedModel, bits: Bits) -> dict[str, Form]:
    """Keep a model's matrices in few bits from now on: linear layers but the head, and fused experts; each weight's form by its name.

    Those of an empty model are bytes that are still to come. Of one that is divided among ranks, each quantises what it has.
    """
    head, forms = model.get_output_embeddings(), dict[str, Form]()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head:
            form = forms[f"{name}.weight"] = bits.form(*module.weight.shape)
            parent, _, own = name.rpartition(".")
            quantized = QuantizedLinear(form, _stored(form, module.weight), module.bias)
            take_over(quantized, module)
            setattr(model.get_submodule(parent), own, quantized)
        elif experts.is_mixture(module):
            of_experts = {}
            for parameter in experts.PROJECTIONS:
                stack = _matrix(module, getattr(module, parameter))
                form = of_experts[parameter] = forms[f"{name}.{parameter}"] = bits.form(*stack.shape[1:])
                setattr(module, parameter, parameter_of(_stored(form, stack), getattr(module, parameter).shape))
            experts.use_quantized(module, of_experts)
    return forms


def leave_of_few_bits(model: PreTrainedModel, bits: Bits) -> None:
    """Round a plain model's matrices to what `store` would leave of them in the compute type: the base that QLoRA trains over."""
    head = model.get_output_embeddings()
    for module in model.modules():
        names = (
            ("weight",) if type(module) is nn.Linear and module is not head else experts.PROJECTIONS if experts.is_mixture(module) else ()
        )
        for name in names:
            stack = _matrix(module, getattr(module, name).data)
            form = bits.form(*stack.shape[-2:])
            for matrix in stack if stack.ndim == 3 else stack[None]:
                matrix.copy_(form.matrix(form.quantize(matrix)))


@register_quantizer(NAME)
class Quantizer(HfQuantizer):  # type: ignore[misc]
    """Cuts and stores the matrices of a base as they are read."""

    quantization_config: Bits
    forms: dict[str, Form]
    operation: "Store"
    is_trainable = False

    def is_serializable(self) -> bool:
        """A quantised base is not saved: it is made anew from its files."""
        return False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        divide(model, self.quantization_config.axis)
        self.forms = {} if self.quantization_config.kind == "none" else store(model, self.quantization_config)
        self.operation = Store(self.forms)

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        """Whether something is done with a weight."""
        return param_name in self.forms or cut_of(model, param_name) is not None

    def get_quantize_ops(self) -> "Store":
        """What is done with it."""
        return self.operation

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        if self.operation.failed:
            raise self.operation.failed
        self.remove_quantization_config(model)  # to all others it is a model like any other, whose layers are its own


class Store(ConversionOps):  # type: ignore[misc]
    """Makes each weight's part, and its bytes. transformers prints what fails here, and goes on: so it is kept, and raised at the end."""

    def __init__(self, forms: dict[str, Form]) -> None:
        self._forms = forms
        self.failed: Exception | None = None

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # of a converter, transformers makes a copy for each weight

    def convert(self, input_dict: dict[str, Any], *, model: PreTrainedModel, **_: Any) -> dict[str, Tensor]:
        """What stays of each of the weights, by the same names; nothing after a failure."""
        if self.failed:
            return {}
        try:
            return {name: self._kept(model, name, given[0] if isinstance(given, list) else given) for name, given in input_dict.items()}
        except Exception as error:  # re-raised when all are read
            self.failed = error
            return {}

    def _kept(self, model: PreTrainedModel, name: str, weight: Tensor) -> Tensor:
        if (cut := cut_of(model, name)) is not None:
            weight = cut[0].of(weight, cut[1])
        if name not in self._forms:
            return weight
        parameter = self._forms[name].quantize(_matrix(model.get_submodule(name.rpartition(".")[0]), weight))
        return parameter_of(parameter, weight.shape)


def _matrix(module: Any, weight: Tensor) -> Tensor:
    """The weight as [O, I], or as a stack [E, O, I]: some mixtures have it the other way round."""
    return weight.mT if experts.is_mixture(module) and module.is_transposed else weight


def _stored(form: Form, weight: Tensor) -> nn.Parameter:
    if weight.device.type != "meta":
        return form.quantize(weight)
    return nn.Parameter(torch.empty(*weight.shape[:-2], form.num_bytes, dtype=torch.uint8, device="meta"), requires_grad=False)

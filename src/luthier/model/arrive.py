"""What becomes of a base model's weights as transformers reads them: each matrix is stored in few bits before the next one comes.

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
from luthier.model.quantize import Form, QuantizedLinear, parameter_of

NAME = "luthier"
"""Under which transformers knows the quantizer."""


@register_quantization_config(NAME)
@dataclass
class Bits(QuantizationConfigMixin):  # type: ignore[misc]
    """Few bits, as `from_pretrained` takes them."""

    quant_method: str = NAME
    kind: Literal["int8", "nf4", "fp4"] = "nf4"
    double_quant: bool = True
    dtype: torch.dtype = torch.bfloat16

    def form(self, rows: int, columns: int) -> Form:
        """Of a matrix, or of each of a stack."""
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
            setattr(model.get_submodule(parent), own, QuantizedLinear(form, _stored(form, module.weight), module.bias))
        elif experts.is_mixture(module):
            of_experts = {}
            for parameter in experts.PROJECTIONS:
                stack = _matrix(module, getattr(module, parameter))
                form = of_experts[parameter] = forms[f"{name}.{parameter}"] = bits.form(*stack.shape[1:])
                setattr(module, parameter, parameter_of(_stored(form, stack), getattr(module, parameter).shape))
            experts.use_quantized(module, of_experts)
    return forms


@register_quantizer(NAME)
class Quantizer(HfQuantizer):  # type: ignore[misc]
    """Stores the matrices of a base in few bits as they are read."""

    quantization_config: Bits
    forms: dict[str, Form]
    operation: "Store"
    is_trainable = False

    def is_serializable(self) -> bool:
        """A quantised base is not saved: it is made anew from its files."""
        return False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        self.forms = store(model, self.quantization_config)
        self.operation = Store(self.forms)

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        """Whether a weight is stored in few bits."""
        return param_name in self.forms

    def get_quantize_ops(self) -> "Store":
        """What is done with it."""
        return self.operation

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        if self.operation.failed:
            raise self.operation.failed
        self.remove_quantization_config(model)  # to all others it is a model like any other, whose layers are its own


class Store(ConversionOps):  # type: ignore[misc]
    """Makes each weight's bytes. transformers prints what fails here, and goes on: so it is kept, and raised at the end."""

    def __init__(self, forms: dict[str, Form]) -> None:
        self._forms = forms
        self.failed: Exception | None = None

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # of a converter, transformers makes a copy for each weight

    def convert(self, input_dict: dict[str, Any], *, model: PreTrainedModel, **_: Any) -> dict[str, Tensor]:
        """Bytes for each of the weights, by the same names; nothing after a failure."""
        stored: dict[str, Tensor] = {}
        for name, given in input_dict.items() if self.failed is None else ():
            weight = given[0] if isinstance(given, list) else given
            try:
                parameter = self._forms[name].quantize(_matrix(model.get_submodule(name.rpartition(".")[0]), weight))
            except Exception as error:  # re-raised when all are read
                self.failed = error
                return {}
            stored[name] = parameter_of(parameter, weight.shape)
        return stored


def _matrix(module: Any, weight: Tensor) -> Tensor:
    """The weight as [O, I], or as a stack [E, O, I]: some mixtures have it the other way round."""
    return weight.mT if experts.is_mixture(module) and module.is_transposed else weight


def _stored(form: Form, weight: Tensor) -> nn.Parameter:
    if weight.device.type != "meta":
        return form.quantize(weight)
    return nn.Parameter(torch.empty(*weight.shape[:-2], form.num_bytes, dtype=torch.uint8, device="meta"), requires_grad=False)

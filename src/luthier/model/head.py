"""The head and the loss at supervised positions only, in chunks, with the gradient formed in the same pass.

N = targets, D = hidden, V = vocabulary.  For the models of PLAIN with a frozen head neither the logits of all targets nor their gradient
exist at once; where the head is trained or adapted, or the model scales its logits, all targets' logits do (`luthier.train.objective`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from luthier.model.adapt import base_of
from luthier.model.pointwise import cross_entropy_
from luthier.model.shard import class_of

CHUNK_BYTES = 64 << 20
"""Of logits at once. 64 MiB of 2 bytes are 1,048 rows of 32,000, or 220 of 152,000: enough for the product to run at its full rate."""
PLAIN = {"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma"}
"""Model types of transformers whose logits are the head's output as it is: no scale, no soft cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """A causal model cut before its head."""

    base: nn.Module
    decoder: nn.Module
    head: nn.Linear

    @property
    def weight_VD(self) -> Tensor:
        """The head's, as it is now: where replicas divide it, it is to be made whole."""
        return self.head.weight


def halves(model: nn.Module) -> Halves | None:
    """The model's decoder and frozen head, where its logits are just their product; else nothing."""
    if not isinstance(model, (PreTrainedModel, PeftModel)):
        return None
    base = base_of(model)
    head = base.get_output_embeddings()
    known = class_of(base).__module__.startswith("transformers.models.") and base.config.model_type in PLAIN
    if not known or class_of(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        return None
    if "_hf_hook" in vars(head):  # layers are on several devices, and what comes in is moved where a module is called
        return None
    return Halves(base=base, decoder=base.get_decoder(), head=head)


def nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """-log softmax(hidden weightᵀ)[target] of each [N], in float32; `weight_VD` is frozen."""
    return _HeadLoss.apply(hidden_ND, weight_VD, targets_N)  # type: ignore[no-any-return, no-untyped-call]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        rows, ones_N = _rows_at_once(weight_VD), torch.ones_like(targets_N)
        wanted = ctx.needs_input_grad[0]
        d_hidden_ND = torch.empty_like(hidden_ND) if wanted else hidden_ND[:0]
        losses_N = torch.empty(len(hidden_ND), device=hidden_ND.device)
        for start in range(0, len(hidden_ND), rows):
            part = slice(start, start + rows)
            logits_NV = hidden_ND[part] @ weight_VD.T
            losses_N[part] = cross_entropy_(logits_NV, targets_N[part], ones_N[part])
            if wanted:
                torch.mm(logits_NV, weight_VD, out=d_hidden_ND[part])
        ctx.save_for_backward(d_hidden_ND)
        return losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        (d_hidden_ND,) = ctx.saved_tensors  # of each target's own loss: no other depends on its hidden state
        return d_hidden_ND * grad_N[:, None].to(d_hidden_ND.dtype), None, None


def _rows_at_once(weight_VD: Tensor) -> int:
    return max(16, CHUNK_BYTES // (weight_VD.element_size() * len(weight_VD)))

"""The loss: a sum over supervised tokens.  B = rows, T = positions, N = supervised positions, D = hidden, V = vocabulary."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from luthier.train.batch import MicroBatch


def nll_sum(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Summed negative log-likelihood of the supervised tokens, in float32; the caller divides by the count of all of a step."""
    return F.cross_entropy(logits_at_targets(model, batch).float(), batch.targets_N, reduction="sum")


def logits_at_targets(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Logits [N, V] where there is a target, and nowhere else: with one position in eight supervised, an eighth of the head's work.

    The hidden states are selected as they enter the head, so that whatever a model does to its logits after it
    (soft caps, scales) is still done.
    """
    with _head_sees_targets_only(model, batch):
        logits: Tensor = model(input_ids=batch.ids_BT, use_cache=False).logits
    if logits.shape[:2] == (1, batch.num_targets):
        return logits[0]
    warnings.warn(f"{type(model).__name__} does not call its head as a module: logits are computed at every position", stacklevel=2)
    return logits[batch.rows_N, batch.positions_N]


@contextmanager
def _head_sees_targets_only(model: Any, batch: MicroBatch) -> Iterator[None]:
    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD, *rest = inputs
        return (hidden_BTD[batch.rows_N, batch.positions_N][None], *rest)

    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        yield
        return
    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()

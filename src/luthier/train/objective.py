"""The loss: a sum over supervised tokens.  A = tokens of a micro batch, N = targets, D = hidden, V = vocabulary."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from luthier.model import head
from luthier.model.shard import whole, within
from luthier.train.batch import MicroBatch


def nll_sum(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Summed negative log-likelihood of the supervised tokens, in float32; the caller divides by the count of all of a step."""
    return (nll(model, batch) * batch.counts_N).sum()


def nll(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Negative log-likelihood [N] of each target, once however many rows it counts for, in float32.

    Where logits are just the product of hidden states and a frozen head, they are made in chunks together with their gradient.
    """
    halves = head.halves(model)
    if halves is None:
        return F.cross_entropy(_colder(logits_at_targets(model, batch).float(), batch), batch.targets_N, reduction="none")
    return within(halves.base, functools.partial(_nll, halves, batch))


def _nll(halves: head.Halves, batch: MicroBatch) -> Tensor:
    hidden_ND = _hidden_at_targets(halves, batch)
    with whole(halves.head):
        return head.nll(_colder(hidden_ND, batch), halves.weight_VD, batch.targets_N)


def _colder(values: Tensor, batch: MicroBatch) -> Tensor:
    """Logits, or the hidden states that they are products of, over the temperature."""
    return values if batch.temperature == 1 else values / batch.temperature


def _hidden_at_targets(halves: head.Halves, batch: MicroBatch) -> Tensor:
    hidden_AD: Tensor = halves.decoder(**batch.inputs(), **batch.hints()).last_hidden_state.flatten(0, 1)
    return hidden_AD[batch.sources_N if len(hidden_AD) == len(batch.keys_A) else batch.places_N]


def logits_at_targets(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Logits [N, V] where there is a target, and nowhere else: with one position in eight supervised, an eighth of the head's work.

    The hidden states are selected as they enter the head, so that whatever a model does to its logits after it
    (soft caps, scales) is still done.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model  # PEFT calls its forward, past the hooks that put it together
    with _head_sees_targets_only(model, batch):
        logits: Tensor = base(**batch.inputs()).logits
    if logits.shape[:2] == (1, len(batch.needed_S)):
        # Where no token predicts several targets, places are all of them in order: no copy of the logits, nor of their gradient
        return logits[0] if len(batch.places_N) == len(batch.needed_S) else logits[0, batch.places_N]
    warnings.warn(f"{type(model).__name__} does not call its head as a module: logits are computed at every position", stacklevel=2)
    return logits.flatten(0, 1)[batch.sources_N]


@contextmanager
def _head_sees_targets_only(model: Any, batch: MicroBatch) -> Iterator[None]:
    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD, *rest = inputs
        return (hidden_BTD.flatten(0, 1)[batch.needed_S.to(hidden_BTD.device)][None], *rest)

    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        yield
        return
    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()

"""Rows of a model whose layers keep what slots do not: each row has transformers' own cache and goes through the model alone.

Slower than side by side by about the number of rows, and right for every causal model whose own cache is.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.model.slots import Chunk

CACHES = ("past_key_values", "cache_params")
"""What models call it, in their forward and in what it returns."""


class OneByOne:
    """What Slots and Abreast do, row by row. A prompt is read whole: not every cache can be continued by several tokens."""

    has_states, mixes = True, False
    """One row a pass while it reads; adapters in turns."""

    def __init__(self, base: PreTrainedModel, *, most_slots: int, most_tokens: int) -> None:
        self._base, self._most_slots, self._most_tokens = base, most_slots, most_tokens
        self._name = next(name for name in CACHES if name in inspect.signature(base.forward).parameters)
        self._caches: dict[int, Any] = {}

    @property
    def slots(self) -> "OneByOne":
        """Where its rows are."""
        return self

    def fits(self, rows: int, length: int) -> bool:
        """Whether so many rows of that length may be written at once."""
        return rows == 1 or (rows <= self._most_slots and rows * length <= self._most_tokens)

    def reserve(self, rows: int, length: int, taken: int) -> None:
        """Forget what rows that have left had."""
        self._caches = {slot: cache for slot, cache in self._caches.items() if slot < taken}

    def free(self) -> None:
        """Hold no row."""
        self._caches.clear()

    def clear(self, slot: int) -> None:
        """Leave nothing of a row."""
        self._caches.pop(slot, None)

    def move(self, source: int, target: int, length: int) -> None:
        """Give a row another slot."""
        self.clear(target)
        self.swap(source, target, length)

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange two rows, of which one may have nothing yet."""
        new = {target: self._caches.pop(source) for source, target in ((one, other), (other, one)) if source in self._caches}
        self._caches |= new

    def logits(self, chunk: Chunk, keep: int = 1) -> Tensor:
        """Of each row's last `keep` tokens of the pass, all for 0 [B, ·, V]."""
        return torch.cat([self._of_row(slot, ids, keep) for slot, ids in enumerate(chunk.ids, chunk.start)])

    def _of_row(self, slot: int, ids: Sequence[int], keep: int) -> Tensor:
        known = {self._name: self._caches[slot]} if slot in self._caches else {}
        ids_1Q = torch.tensor([ids], device=self._base.device)
        out = self._base(input_ids=ids_1Q, use_cache=True, logits_to_keep=keep, **known)
        self._caches[slot] = out[self._name]
        logits: Tensor = out.logits
        return logits

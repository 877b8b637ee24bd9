"""Keys and values of prompts that were computed, kept for prompts that begin alike: a system prompt, a dialogue's earlier turns."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

BLOCK = 16
"""Tokens that are kept or found together."""

Part = tuple[Tensor, ...]
"""Of each layer, what it keeps of a block's tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """BLOCK tokens after one beginning; `id` stands for the beginning that ends with them."""

    id: int
    part: Part


class Prefixes:
    """At most `num_tokens` tokens; what was used longest ago goes first, and no block before those that continue it."""

    def __init__(self, num_tokens: int) -> None:
        self._most = num_tokens // BLOCK
        self._blocks: OrderedDict[tuple[int | str, tuple[int, ...]], Block] = OrderedDict()
        self._ids = itertools.count()

    @property
    def num_tokens(self) -> int:
        """Tokens that are kept."""
        return len(self._blocks) * BLOCK

    def find(self, adapter: str, ids: Sequence[int]) -> list[Block]:
        """The blocks with which a prompt begins; of its last token nothing is taken, for what follows it is to be computed."""
        parent: int | str = adapter
        found, keys = [], []
        for start in range(0, len(ids) - BLOCK, BLOCK):
            key = (parent, tuple(ids[start : start + BLOCK]))
            block = self._blocks.get(key)
            if block is None:
                break
            found.append(block)
            keys.append(key)
            parent = block.id
        self._use(keys)
        return found

    def keep(self, adapter: str, ids: Sequence[int], part: Callable[[int, int], Part]) -> list[int]:
        """Keep the whole blocks of a sequence, and their numbers; `part` gives what lies between two places of it."""
        parent: int | str = adapter
        keys, numbers = [], []
        for start in range(0, min(len(ids), self._most * BLOCK) - BLOCK + 1, BLOCK):
            key = (parent, tuple(ids[start : start + BLOCK]))
            if key not in self._blocks:
                self._blocks[key] = Block(id=next(self._ids), part=part(start, start + BLOCK))
            keys.append(key)
            numbers.append(parent := self._blocks[key].id)
        self._use(keys)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return numbers

    def forget(self, adapter: str) -> None:
        """Keep nothing of what this adapter has read and written."""
        gone: set[int | str] = {adapter}
        for key in reversed(list(self._blocks)):  # what continues a block stands before it
            if key[0] in gone:
                gone.add(self._blocks.pop(key).id)

    def shared(self, one: Sequence[int], other: Sequence[int]) -> int:
        """With how many tokens that will be kept both begin."""
        start, stop = 0, min(len(one) - 1, len(other), self._most * BLOCK)
        while start + BLOCK <= stop and one[start : start + BLOCK] == other[start : start + BLOCK]:
            start += BLOCK
        return start

    def _use(self, keys: Sequence[tuple[int | str, tuple[int, ...]]]) -> None:
        for key in reversed(keys):
            self._blocks.move_to_end(key)

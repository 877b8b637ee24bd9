"""The cache of rows that are written side by side: each has a slot, its tokens from the slot's start on, at their positions.

S = slots, L = tokens that a slot holds, B = rows of a pass, Q = tokens of each in it, H = key and value heads, d = head size.

Rows of a pass are neighbours, so attention reads keys and values where they lie. A row with fewer than Q tokens has padding before
them, whose keys go where the row's next token will write over them, before anything sees them. What a row does not see is a number all
the same: it is multiplied by a probability of zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, LinearAttentionLayer, get_layer_types_and_kwargs

from luthier.model.attention import Unfusable
from luthier.plan.asked import SLOT_ROUND

STATES = {"linear_attention", "conv"}
"""Layer types that have a state for a row, whatever its length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The tokens of neighbouring rows that go through the model in one pass: those after the first `done`, which are in the cache."""

    start: int
    """The first row's slot."""
    ids: Sequence[Sequence[int]]
    done: Sequence[int]
    speakers: Sequence[int]
    """The number of each row's adapter; -1 for the base alone."""
    lenders: Sequence[tuple[int, int]] = ()
    """For passes of one token a row: the slot in which each row's first tokens stand as well, and how many; by default its own."""

    @property
    def stop(self) -> int:
        """Behind the last row's slot."""
        return self.start + len(self.ids)

    @property
    def width(self) -> int:
        """Q."""
        return max(len(ids) for ids in self.ids)

    @property
    def length(self) -> int:
        """Tokens of the longest row, after the pass."""
        return max(done + len(ids) for done, ids in zip(self.done, self.ids, strict=True))


class KeySlots(CacheLayerMixin):  # type: ignore[misc]  # to mypy, transformers' caches are Any
    """Of one layer with attention [S, L, H, d]. A sliding window is the mask's, so that all of a row's tokens are there."""

    is_sliding = False

    def __init__(self, slots: "Slots") -> None:
        super().__init__()
        self._slots = slots
        self.is_initialized: bool = False

    def make_room(self, num_heads: int, size: int, like: Tensor) -> None:
        """When the first keys tell their shape and type."""
        if not self.is_initialized:
            shape = (self._slots.num_slots, self._slots.length, num_heads, size)
            self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
            self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """As `make_room`."""
        self.make_room(key_states.shape[1], key_states.shape[3], key_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put the pass's keys and values [B, H, Q, d] where they belong; all of its rows' so far, [B, H, tokens, d]."""
        self.lazy_initialization(key_states, value_states)
        for held_SLHd, new_BHQd in ((self.keys, key_states), (self.values, value_states)):
            held_SLHd.flatten(0, 1).index_copy_(0, self._slots.places_T, new_BHQd.transpose(1, 2).flatten(0, 1))
        return self.seen()

    def seen(self) -> tuple[Tensor, Tensor]:
        """The keys and values of the pass's rows, [B, H, tokens, d]."""
        start, stop, length = self._slots.aimed_at
        return self.keys[start:stop, :length].transpose(1, 2), self.values[start:stop, :length].transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys of a pass."""
        return self._slots.aimed_at[2], 0

    def get_seq_length(self) -> int:
        """Rows have lengths of their own, which the pass's positions tell."""
        return 0

    def get_max_length(self) -> int:
        """L."""
        return self._slots.length

    def row(self, slot: int, start: int, stop: int) -> tuple[Tensor, ...]:
        """What a row's tokens have here: views."""
        return (self.keys[slot, start:stop], self.values[slot, start:stop]) if self.is_initialized else ()

    def resize(self, rows: int) -> None:
        """Take the slots' new size; the first rows stay."""
        if self.is_initialized:
            self.keys, self.values = (self._resized(held, rows) for held in (self.keys, self.values))

    def _resized(self, held_SLHd: Tensor, rows: int) -> Tensor:
        new = held_SLHd.new_zeros(self._slots.num_slots, self._slots.length, *held_SLHd.shape[2:])
        length = min(held_SLHd.shape[1], new.shape[1])
        new[:rows, :length] = held_SLHd[:rows, :length]
        return new


class StateSlots(LinearAttentionLayer):  # type: ignore[misc]
    """Of one layer with states: each row's, of fixed size. Rows of a pass have the same number of tokens, and all are new or none is."""

    def __init__(self, slots: "Slots", number_of_states: int) -> None:
        super().__init__(number_of_states=number_of_states)
        self._slots = slots
        self._held: dict[tuple[str, int], Tensor] = {}

    def aim(self, start: int, stop: int, *, new: bool) -> None:
        """Before a pass: its rows' states, which are then changed in place."""
        for (kind, index), held in self._held.items():
            getattr(self, kind)[index] = held[start:stop]
        self.has_previous_state: dict[int, bool] = dict.fromkeys(range(self.number_of_states), not new)

    def lazy_initialization(
        self,
        conv_states: Tensor | None = None,
        recurrent_states: Tensor | None = None,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
    ) -> None:
        """When the first states tell their shape."""
        super().lazy_initialization(conv_states, recurrent_states, state_idx, conv_kernel_size)
        for kind, state in (("conv_states", conv_states), ("recurrent_states", recurrent_states)):
            if state is not None:
                given = getattr(self, kind)[state_idx]
                self._held[kind, state_idx] = held = given.new_zeros(self._slots.num_slots, *given.shape[1:])
                start, stop, _ = self._slots.aimed_at
                getattr(self, kind)[state_idx] = held[start:stop]

    def row(self, slot: int, start: int, stop: int) -> tuple[Tensor, ...]:
        """A row's states, which are of all its tokens: views."""
        return tuple(held[slot] for held in self._held.values())

    def resize(self, rows: int) -> None:
        """Take the slots' new number; the first rows stay."""
        for key, held in self._held.items():
            self._held[key] = new = held.new_zeros(self._slots.num_slots, *held.shape[1:])
            new[:rows] = held[:rows]


class Slots(Cache):  # type: ignore[misc]
    """At most `most_slots` rows, and slots times their length at most `most_tokens`, or one row; raises Unfusable for a model whose
    layers keep something else."""

    def __init__(self, config: PreTrainedConfig, *, most_slots: int, most_tokens: int) -> None:
        self.kinds, self._options = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        self.windows = {kind: some.get("sliding_window") for kind, some in zip(self.kinds, self._options, strict=True)}
        if strange := set(self.kinds) - STATES - {"full_attention", "sliding_attention"}:
            raise Unfusable(f"rows cannot be written side by side with layers of kind {', '.join(sorted(strange))}")
        self.num_slots = self.length = 0
        self._most_slots, self._most_tokens = most_slots, most_tokens
        self.aimed_at = (0, 0, 0)
        """The first slot of the pass, the one behind its last, and how many places it sees."""
        self.places_T = torch.empty(0, dtype=torch.long)
        """Where the pass's tokens go, counted through all slots."""
        super().__init__(layers=self._new())

    def _new(self) -> list[Any]:
        return [
            StateSlots(self, some["number_of_states"]) if kind in STATES else KeySlots(self)
            for kind, some in zip(self.kinds, self._options, strict=True)
        ]

    @property
    def has_states(self) -> bool:
        """Whether the rows of a pass must have the same number of tokens, and no prompt can begin where another did."""
        return bool(STATES & set(self.kinds))

    def fits(self, rows: int, length: int) -> bool:
        """Whether so many rows of that length may be written at once."""
        return rows == 1 or (rows <= self._most_slots and rows * length <= self._most_tokens)

    def reserve(self, rows: int, length: int, taken: int) -> None:
        """Have room for rows that fit; the first `taken` slots hold some already."""
        if rows > self.num_slots or length > self.length:
            self.length = -(-length // SLOT_ROUND) * SLOT_ROUND
            self.num_slots = max(rows, min(self._most_slots, self._most_tokens // self.length))
            for layer in self.layers:
                layer.resize(taken)

    def free(self) -> None:
        """Hold no row, and no memory."""
        self.num_slots = self.length = 0
        self.layers = self._new()

    def aim(self, chunk: Chunk, device: torch.device) -> tuple[Tensor, Tensor]:
        """Before a pass: its ids and positions [B, Q]."""
        ids_BQ, positions_BQ, places_BQ = (torch.tensor(rows, device=device) for rows in zip(*self._rows(chunk), strict=True))
        self.aimed_at, self.places_T = (chunk.start, chunk.stop, chunk.length), places_BQ.flatten()
        for layer in self.layers:
            if isinstance(layer, StateSlots):
                layer.aim(chunk.start, chunk.stop, new=not chunk.done[0])
        return ids_BQ, positions_BQ

    def masks(self, positions_BQ: Tensor, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """Added to scores [B, 1, Q, tokens], by the kind of layer: a token sees those up to its own position, of a window so many."""
        away_BQL = positions_BQ[..., None] - torch.arange(self.aimed_at[2], device=positions_BQ.device)
        hidden = {
            kind: (away_BQL < 0) if window is None else (away_BQL < 0) | (away_BQL >= window) for kind, window in self.windows.items()
        }
        return {
            kind: None if kind in STATES else torch.zeros_like(away_BQL, dtype=dtype).masked_fill_(some, torch.finfo(dtype).min)[:, None]
            for kind, some in hidden.items()
        }

    def _rows(self, chunk: Chunk) -> Iterator[tuple[list[int], list[int], list[int]]]:
        """Ids, positions and places of each row; padding before its tokens, at position 0 and its next token's place."""
        width = chunk.width
        for row, (ids, done) in enumerate(zip(chunk.ids, chunk.done, strict=True), chunk.start):
            padding, end = width - len(ids), done + len(ids)
            first = row * self.length
            yield (
                [*[0] * padding, *ids],
                [*[0] * padding, *range(done, end)],
                [*[first + end] * padding, *range(first + done, first + end)],
            )

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row's tokens to another slot."""
        for held, new in zip(self._row(source, 0, length), self._row(target, 0, length), strict=True):
            new.copy_(held)

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange two rows."""
        for held, new in zip(self._row(one, 0, length), self._row(other, 0, length), strict=True):
            kept = new.clone()
            new.copy_(held)
            held.copy_(kept)

    def clear(self, slot: int) -> None:
        """Leave nothing of a row whose numbers are not finite."""
        for held in self._row(slot, 0, self.length):
            held.zero_()

    def part(self, slot: int, start: int, stop: int) -> tuple[Tensor, ...]:
        """A copy of what a row's tokens have, layer by layer."""
        return tuple(held.clone() for held in self._row(slot, start, stop))

    def put(self, slot: int, parts: Sequence[tuple[Tensor, ...]]) -> None:
        """Begin a row with what `part` gave."""
        length = sum(len(part[0]) for part in parts)
        for held, *pieces in zip(self._row(slot, 0, length), *parts, strict=True):
            torch.cat(pieces, out=held)

    def _row(self, slot: int, start: int, stop: int) -> Iterator[Tensor]:
        for layer in self.layers:
            yield from layer.row(slot, start, stop)

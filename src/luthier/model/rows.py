"""Requests that are answered side by side: who writes has one of the first slots, whose prompt is being read one of the next."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from luthier.core.generation import Asked, Listener, Token
from luthier.model.onebyone import OneByOne
from luthier.model.prefix import BLOCK
from luthier.model.slots import Slots

NOWHERE = -1
"""The slot of who waits, or has left."""


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """A request, and how far it is."""

    asked: Asked
    listener: Listener
    ids: list[int]
    """Prompt and answer."""
    slot: int = NOWHERE
    done: int = 0
    """Tokens that are in the cache."""
    blocks: Sequence[int] = ()
    """What of its prompt is known, by the numbers of `Prefixes`."""
    prompt_told: list[Token] = field(default_factory=list)
    over: bool = False
    """It was cancelled, has failed or ended: nothing more is told."""

    @property
    def num_written(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - len(self.asked.ids)

    @property
    def num_unread(self) -> int:
        """Tokens of the prompt that are not in the cache."""
        return len(self.ids) - self.done

    @property
    def most_tokens(self) -> int:
        """That it may come to."""
        return len(self.asked.ids) + self.asked.sampling.max_new_tokens

    @property
    def tells_prompt(self) -> bool:
        """Whether what is read now is to be told."""
        return self.asked.prompt_told and not self.num_written

    def begin_again(self) -> None:
        """What was in the cache is to be read again, what was written with it."""
        self.done, self.blocks = 0, ()
        self.prompt_told.clear()

    def tell_prompt(self) -> None:
        """All of it is known."""
        if not self.over:
            self.listener.prompt(tuple(self.prompt_told))

    def tell(self, token: Token) -> None:
        """One more token of the answer."""
        self.ids.append(token.id)
        if not self.over:
            self.over = bool(token.end)
            self.listener.token(token)

    def fail(self, error: Exception) -> None:
        """Nothing more comes."""
        if not self.over:
            self.over = True
            self.listener.failed(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTicket:
    """A request that is being worked on."""

    row: Row
    changed: threading.Condition

    def cancel(self) -> None:
        """Work no more on it; what the engine's thread is telling at this moment may still arrive."""
        with self.changed:
            self.row.over = True
            self.changed.notify()


class Rows:
    """Who has a slot. Rows of a pass are neighbours, so who leaves is replaced by the last of his kind."""

    def __init__(self, slots: Slots | OneByOne) -> None:
        self._slots = slots
        self._rows: list[Row] = []
        self._num_writing = 0
        self._lenders: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    @property
    def writing(self) -> list[Row]:
        """By their slots."""
        return self._rows[: self._num_writing]

    @property
    def reading(self) -> list[Row]:
        """By their slots."""
        return self._rows[self._num_writing :]

    @property
    def lenders(self) -> list[tuple[int, int]]:
        """Of those who write, as Chunk has them."""
        self._lenders = self._lenders or _lenders(self.writing)
        return self._lenders

    def add(self, row: Row, done: int) -> None:
        """One more reads, of whose prompt so many tokens are in its slot already."""
        row.slot, row.done = len(self._rows), done
        self._rows.append(row)

    def become_writer(self, row: Row) -> None:
        """Its slot is then behind those of others who write."""
        first = self._num_writing
        if row.slot != first:
            other = self._rows[first]
            self._slots.swap(row.slot, first, max(row.done, other.done))
            other.slot, self._rows[row.slot] = row.slot, other
            row.slot, self._rows[first] = first, row
        self._num_writing += 1
        self._lenders = []

    def leave(self, row: Row) -> None:
        """Its slot goes to the last of those who write, whose own goes to the last who reads. Harmless when it has left."""
        hole, row.slot = row.slot, NOWHERE
        if hole == NOWHERE:
            return
        if hole < self._num_writing:
            self._num_writing -= 1
            self._lenders = []
            hole = self._fill(hole, self._num_writing)
        self._fill(hole, len(self._rows) - 1)
        self._rows.pop()

    def leave_all(self) -> list[Row]:
        """Who had slots, which hold nothing any more."""
        left, self._rows, self._num_writing, self._lenders = self._rows, [], 0, []
        for row in left:
            row.slot = NOWHERE
        return left

    def _fill(self, hole: int, last: int) -> int:
        """Move a row into a hole; where the hole is then."""
        if hole != last:
            row = self._rows[last]
            self._slots.move(last, hole, row.done)
            row.slot, self._rows[hole] = hole, row
        return last


def _lenders(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """For each row the first one that has more of its blocks than others, and how many tokens these are."""
    slots: dict[int, int] = {}
    found = []
    for row in rows:
        known = next((number for number in range(len(row.blocks), 0, -1) if row.blocks[number - 1] in slots), 0)
        found.append((slots[row.blocks[known - 1]], known * BLOCK) if known else (row.slot, 0))
        slots |= {block: row.slot for block in row.blocks[known:]}
    return found

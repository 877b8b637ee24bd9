"""Many requests written at once by one model: they join and leave between two passes, and what prompts share is computed once.

Rows that are being written have the first slots; those whose prompts are still being read, the next. A long prompt is read in chunks, a
chunk for each token of those who write, so that nobody waits for it.
"""

import functools
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Self

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from luthier.core.errors import LuthierError, RunError
from luthier.core.generation import Asked, Listener, Token
from luthier.model.adapt import base_of
from luthier.model.prefix import BLOCK, Block, Prefixes
from luthier.model.sample import chosen, told
from luthier.model.slots import Chunk, Slots
from luthier.model.ways import passes_of
from luthier.plan.scoring import BATCH_TOKENS, CHUNK

TURN = 64
"""Requests that one adapter may have answered while one for another waits."""
WASTE = 2
"""How many times as many tokens a pass may take as its shortest row has."""


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """A request, and how far it is."""

    asked: Asked
    listener: Listener
    ids: list[int]
    """Prompt and answer."""
    slot: int = -1
    done: int = 0
    """Tokens that are in the cache."""
    blocks: Sequence[int] = ()
    """What of its prompt is known, by the numbers of `Prefixes`."""
    prompt_told: list[Token] = field(default_factory=list)
    cancelled: bool = False

    @property
    def num_written(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - len(self.asked.ids)

    @property
    def most_tokens(self) -> int:
        """That it may come to."""
        return len(self.asked.ids) + self.asked.sampling.max_new_tokens

    def tell(self, token: Token) -> None:
        """One more token of the answer."""
        self.ids.append(token.id)
        if not self.cancelled:
            self.listener.token(token)

    def fail(self, error: Exception) -> None:
        """Nothing more comes."""
        if not self.cancelled:
            self.cancelled = True
            self.listener.failed(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTicket:
    """A request that is being worked on."""

    row: Row
    changed: threading.Condition

    def cancel(self) -> None:
        """Work no more on it; what the engine's thread is telling at this moment may still arrive."""
        with self.changed:
            self.row.cancelled = True
            self.changed.notify()


def active_adapter(model: PreTrainedModel | PeftModel) -> str:
    """The name of the adapter with which a model speaks as it is; empty for a base, and for one whose adapter is switched off."""
    on = isinstance(model, PeftModel) and not any(layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    return str(model.active_adapter) if on else ""


class Decoder:
    """An Engine over a loaded model, base or with adapters by their names in PEFT.

    `start()` gives it a thread of its own; without one, `step()` does the work, for as long as it returns true.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        slots: int = 32,
        max_length: int,
        cache_tokens: int = BATCH_TOKENS,
        prefix_tokens: int = BATCH_TOKENS,
        chunk: int = CHUNK,
    ) -> None:
        """`slots` rows at most are written at once, with at most `cache_tokens` places (rows × the longest), or one row; prompts are kept
        up to `prefix_tokens`, and read by up to `chunk` tokens at once."""
        self._model, self._base = model, base_of(model)
        self._adapter = active_adapter(model)
        names = tuple(model.peft_config) if isinstance(model, PeftModel) else ()
        self._speakers = {"": -1} | {name: number for number, name in enumerate(names)}
        speaker = self._speakers[self._adapter]
        self._passes = passes_of(self._base, names, speaker, most_slots=slots, most_tokens=cache_tokens)
        self._slots = self._passes.slots
        self._prefixes = Prefixes(0 if self._slots.has_states else prefix_tokens)
        self._max_length, self._chunk = max_length, chunk if isinstance(self._slots, Slots) else max_length
        self._changed = threading.Condition()
        self._asked: deque[Row] = deque()
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        self._num_writing = 0
        self._lenders: list[tuple[int, int]] = []
        """Of those who write, as Chunk has them; none where it is to be found out."""
        self._ahead = 0
        """Requests that went ahead of the first who waits."""
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters over its base."""
        return tuple(name for name in self._speakers if name)

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self._max_length

    @property
    def num_kept(self) -> int:
        """Tokens of prompts that are kept for others."""
        return self._prefixes.num_tokens

    def submit(self, asked: Asked, listener: Listener) -> RowTicket:
        """Queue a request; it is the caller who checks that it fits, and that the adapter is known."""
        row = Row(asked=asked, listener=listener, ids=list(asked.ids))
        with self._changed:
            if not self._closed:
                self._asked.append(row)
                self._changed.notify()
                return RowTicket(row=row, changed=self._changed)
        row.fail(_closed())
        return RowTicket(row=row, changed=self._changed)

    def start(self) -> Self:
        """Work in a thread of its own from now on."""
        self._model.eval()
        self._thread = threading.Thread(target=self._work, name="decoder", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """End what is being written, each listener told, and free the model."""
        with self._changed:
            was_closed, self._closed = self._closed, True
            self._changed.notify()
        if self._thread:
            self._thread.join()
        elif not was_closed:
            self._end()

    def step(self) -> bool:
        """One chunk of those who read, one token of those who write; whether there is more to do."""
        with self._changed:
            self._waiting.extend(self._asked)
            self._asked.clear()
        with torch.inference_mode():
            self._drop_cancelled()
            self._admit()
            if len(self._rows) > self._num_writing:
                self._read()
            if self._num_writing:
                self._write()
        return bool(self._rows or self._waiting or self._asked)

    def run_until_idle(self) -> None:
        """All that was asked, in this thread."""
        while self.step():
            pass

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (self._closed or self._asked or self._waiting or self._rows):
                        self._changed.wait()
                    if self._closed:
                        return
                self.step()
        finally:
            with self._changed:
                self._closed = True
            self._end()

    def _end(self) -> None:
        for row in [*self._rows, *self._waiting, *self._asked]:
            row.fail(_closed())
        self._asked.clear()
        self._waiting.clear()
        self._rows, self._num_writing = [], 0
        del self._model, self._base, self._slots, self._prefixes, self._passes

    def _drop_cancelled(self) -> None:
        self._waiting = deque(row for row in self._waiting if not row.cancelled)
        for row in [row for row in self._rows if row.cancelled]:
            self._leave(row)

    def _admit(self) -> None:
        """Give slots to those who wait, in their order, as long as the next of them fits."""
        while self._waiting and (found := self._place_for(row := self._next())) is not None:
            self._ahead = 0 if row is self._waiting[0] else self._ahead + 1
            self._waiting.remove(row)
            length = max(each.most_tokens for each in [*self._rows, row])
            try:
                if not self._passes.mixes:
                    self._switch(row.asked.adapter)
                self._slots.reserve(len(self._rows) + 1, length, len(self._rows))
                if found and isinstance(self._slots, Slots):
                    self._slots.put(len(self._rows), [block.part for block in found])
            except Exception as error:  # such as short memory, in the middle of a change: told to all whose slots are lost
                self._rows, self._num_writing, lost = [], 0, [*self._rows, row]
                self._slots.free()
                for each in lost:
                    each.fail(error)
                return
            row.slot, row.done = len(self._rows), len(found) * BLOCK
            self._rows.append(row)

    def _next(self) -> Row:
        """The first who waits; where adapters take turns, the first with the adapter that speaks now, until TURN of them went ahead."""
        first = self._waiting[0]
        if self._passes.mixes or not self._rows or self._ahead >= TURN:
            return first
        return next((row for row in self._waiting if row.asked.adapter == self._adapter), first)

    def _place_for(self, row: Row) -> Sequence[Block] | None:
        """What is known of the beginning of a row that may be read now; None where it must wait."""
        others = self._rows
        if not self._slots.fits(len(others) + 1, max(each.most_tokens for each in [*others, row])):
            return None
        if not self._passes.mixes and others and others[0].asked.adapter != row.asked.adapter:
            return None
        found = [] if row.asked.prompt_told else self._prefixes.find(row.asked.adapter, row.ids)
        reading = others[self._num_writing :]
        alike = [other for other in reading if other.asked.adapter == row.asked.adapter and not row.asked.prompt_told]
        if any(self._prefixes.shared(row.ids, other.ids) > len(found) * BLOCK for other in alike):
            return None  # soon it will be known
        return found

    def _read(self) -> None:
        """A chunk of prompts: of the first that is being read, and of others that go with it."""
        reading = self._rows[self._num_writing :]
        width = min(len(reading[0].ids) - reading[0].done, self._chunk)
        rows = reading[:1]
        for row in reading[1:]:
            left = len(row.ids) - row.done
            wide = max(width, min(left, self._chunk))
            alike = wide <= WASTE * min(left, *(len(each.ids) - each.done for each in rows))
            if self._slots.has_states or row.asked.prompt_told or rows[0].asked.prompt_told:
                break
            if not alike or (len(rows) + 1) * wide > self._chunk:
                break
            width = wide
            rows.append(row)
        ids = [row.ids[row.done : row.done + width] for row in rows]
        logits_BKV = self._pass(rows, ids, keep=0 if rows[0].asked.prompt_told else 1)
        if logits_BKV is None:
            return
        for row, read in zip(rows, ids, strict=True):
            row.done += len(read)
            if row.asked.prompt_told:
                self._tell_prompt(row, logits_BKV[0])
        ready = [index for index, row in enumerate(rows) if row.done == len(row.ids)]
        if ready:
            for index in ready:
                self._become_writer(rows[index])
            self._tell([rows[index] for index in ready], logits_BKV[ready, -1])

    def _write(self) -> None:
        """One token of each row that is being written."""
        rows = self._rows[: self._num_writing]
        self._lenders = self._lenders or _lenders(rows)
        logits_B1V = self._pass(rows, [row.ids[-1:] for row in rows], self._lenders)
        if logits_B1V is not None:
            for row in rows:
                row.done += 1
            self._tell(rows, logits_B1V[:, -1])

    def _pass(
        self, rows: Sequence[Row], ids: Sequence[Sequence[int]], lenders: Sequence[tuple[int, int]] = (), *, keep: int = 1
    ) -> Tensor | None:
        """The logits; None where it failed, which its rows have been told."""
        speakers = [self._speakers[row.asked.adapter] for row in rows]
        done = [row.done for row in rows]
        try:
            return self._passes.logits(Chunk(start=rows[0].slot, ids=ids, done=done, speakers=speakers, lenders=lenders), keep)
        except Exception as error:  # told to whom it concerns: others' rows are not touched by it
            for row in rows:
                row.fail(error)
                self._leave(row)
            return None

    def _tell(self, rows: Sequence[Row], logits_BV: Tensor) -> None:
        left = [row.asked.left(row.ids) for row in rows]
        tokens = chosen(logits_BV, [row.asked for row in rows], [row.num_written for row in rows], left)
        for row, token in zip(rows, tokens, strict=True):
            if not isfinite(token.logprob):
                row.fail(RunError(f"the model's numbers are not finite after token {len(row.ids)}"))
                self._slots.clear(row.slot)
                self._leave(row)
                continue
            if isinstance(self._slots, Slots) and (
                token.end or not row.num_written
            ):  # the answer too: it begins the dialogue's next prompt
                part = functools.partial(self._slots.part, row.slot)
                row.blocks = self._prefixes.keep(row.asked.adapter, row.ids[: row.done], part)
            row.tell(token)
            if token.end:
                self._leave(row)

    def _tell_prompt(self, row: Row, logits_QV: Tensor) -> None:
        """Of the chunk that was read, whose last token tells the next chunk's first."""
        start = row.done - len(logits_QV)
        ids = row.ids[start + 1 : row.done + 1]
        found = told(logits_QV[: len(ids)], torch.tensor(ids, device=logits_QV.device), [row.asked] * len(ids))
        row.prompt_told += [Token(id=id, logprob=logprob, top=top) for id, (logprob, top) in zip(ids, found, strict=True)]
        if row.done == len(row.ids) and not row.cancelled:
            row.listener.prompt(tuple(row.prompt_told))

    def _become_writer(self, row: Row) -> None:
        """Its slot is then behind those of others who write."""
        first = self._num_writing
        if row.slot != first:
            other = self._rows[first]
            self._slots.swap(row.slot, first, max(row.done, other.done))
            other.slot, self._rows[row.slot] = row.slot, other
            row.slot, self._rows[first] = first, row
        self._num_writing += 1
        self._lenders = []

    def _leave(self, row: Row) -> None:
        """Its slot goes to the last of those who write, whose own goes to the last who reads."""
        hole = row.slot
        if hole < self._num_writing:
            self._num_writing -= 1
            self._lenders = []
            hole = self._fill(hole, self._num_writing)
        self._fill(hole, len(self._rows) - 1)
        self._rows.pop()

    def _fill(self, hole: int, last: int) -> int:
        """Move a row into a hole; where the hole is then."""
        if hole != last:
            row = self._rows[last]
            self._slots.move(last, hole, row.done)
            row.slot, self._rows[hole] = hole, row
        return last

    def _switch(self, adapter: str) -> None:
        """Let the model speak with this adapter, or without any."""
        if adapter == self._adapter or not isinstance(self._model, PeftModel):
            return
        if adapter:
            self._model.base_model.enable_adapter_layers()
            self._model.set_adapter(adapter)
        else:
            self._model.base_model.disable_adapter_layers()
        self._adapter = adapter


def _lenders(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """For each row the first one that has more of its blocks than others, and how many tokens these are."""
    slots: dict[int, int] = {}
    found = []
    for row in rows:
        known = next((number for number in range(len(row.blocks), 0, -1) if row.blocks[number - 1] in slots), 0)
        found.append((slots[row.blocks[known - 1]], known * BLOCK) if known else (row.slot, 0))
        slots |= {block: row.slot for block in row.blocks[known:]}
    return found


def _closed() -> LuthierError:
    return RunError("the engine was closed")

"""Many requests written at once by one model: they join and leave between two passes, and what prompts share is computed once.

A long prompt is read in chunks, a chunk for each token of those who write, so that nobody waits for it.
"""

import functools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from math import isfinite
from typing import Self

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from luthier.core.errors import LuthierError, RunError
from luthier.core.generation import Asked, Listener, Token, Unloaded
from luthier.model.adapt import base_of
from luthier.model.prefix import BLOCK, Block, Prefixes
from luthier.model.rows import Row, Rows, RowTicket
from luthier.model.sample import chosen, told
from luthier.model.slots import Chunk, Slots
from luthier.model.ways import passes_of, passes_with
from luthier.plan.asked import BATCH_TOKENS, CHUNK

TURN = 64
"""Requests that one adapter may have answered while one for another waits."""
WASTE = 2
"""How many times as many tokens a pass may take as its shortest row has."""

Change = Callable[[PreTrainedModel | PeftModel], PreTrainedModel | PeftModel]
"""What is done to a model's adapters, and the model as it is then."""


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
        names = self._names()
        self._meet(names)
        speaker = self._speakers[self._adapter]
        self._passes = passes_of(self._base, names, speaker, most_slots=slots, most_tokens=cache_tokens)
        self._slots = self._passes.slots
        self._prefixes = Prefixes(0 if self._slots.has_states else prefix_tokens)
        self._max_length, self._chunk = max_length, chunk if isinstance(self._slots, Slots) else max_length
        self._changed = threading.Condition()
        self._asked: deque[Row] = deque()
        self._waiting: deque[Row] = deque()
        self._changes: deque[tuple[Change, Future[None]]] = deque()
        self._rows = Rows(self._slots)
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
    def has_ended(self) -> bool:
        """Whether it was closed, or its thread has failed: nothing is answered any more."""
        return self._closed

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

    def change(self, work: Change) -> None:
        """Let `work` put on or take off adapters between two steps; raises what it raises, which has to leave the model as it was.

        Who is answered by others goes on. Who is answered by one that is gone hears Unloaded, and nothing that it read is kept. Called
        from any thread, or, where the engine has none of its own, between two calls of `step`.
        """
        done: Future[None] = Future()
        with self._changed:
            if self._closed:
                raise _closed()
            self._changes.append((work, done))
            self._changed.notify()
        if not self._thread:
            self._change()
        done.result()

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
        self._change()
        with torch.inference_mode():
            self._drop_unanswerable()
            if not self._passes.mixes:
                self._speak_with_one()
            self._admit()
            if self._rows.reading:
                self._read()
            if self._rows.writing:
                self._write()
        return bool(self._rows or self._waiting or self._asked)

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (self._closed or self._changes or self._asked or self._waiting or self._rows):
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
        for _, done in self._changes:
            done.set_exception(_closed())
        self._asked.clear()
        self._waiting.clear()
        self._changes.clear()
        self._slots.free()  # they and their layers know each other: only Python's collector would find them, minutes later
        del self._model, self._base, self._rows, self._slots, self._prefixes, self._passes

    def _names(self) -> tuple[str, ...]:
        """The adapters that the model has, in their order."""
        return tuple(self._model.peft_config) if isinstance(self._model, PeftModel) else ()

    def _meet(self, names: Sequence[str]) -> None:
        self._adapter = active_adapter(self._model)
        self._speakers = {"": -1} | {name: number for number, name in enumerate(names)}

    def _change(self) -> None:
        while self._changes:
            work, done = self._changes.popleft()
            try:
                self._model = work(self._model)
                names = self._names()
                self._passes = passes_with(self._passes, names)
                for gone in set(self.adapters) - set(names):
                    self._prefixes.forget(gone)
                self._meet(names)
            except Exception as error:  # raised where it was asked
                done.set_exception(error)
            else:
                done.set_result(None)

    def _speak_with_one(self) -> None:
        """After a change: with that of the first row; those with others, that shared its passes until then, wait again, in front."""
        rows = list(self._rows)
        for row in reversed([row for row in rows if row.asked.adapter != rows[0].asked.adapter]):
            self._rows.leave(row)
            row.begin_again()
            self._waiting.appendleft(row)
        for row in rows[:1]:
            self._switch(row.asked.adapter)

    def _drop_unanswerable(self) -> None:
        for row in [*self._waiting, *self._rows]:
            if row.asked.adapter not in self._speakers:
                row.fail(Unloaded("the adapter was unloaded before the answer was whole"))
        self._waiting = deque(row for row in self._waiting if not row.over)
        for row in [row for row in self._rows if row.over]:
            self._rows.leave(row)

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
                lost = [*self._rows.leave_all(), row]
                self._slots.free()
                for each in lost:
                    each.fail(error)
                return
            self._rows.add(row, len(found) * BLOCK)

    def _next(self) -> Row:
        """The first who waits; where adapters take turns, the first with the adapter that speaks now, until TURN of them went ahead."""
        first = self._waiting[0]
        if self._passes.mixes or not self._rows or self._ahead >= TURN:
            return first
        return next((row for row in self._waiting if row.asked.adapter == self._adapter), first)

    def _place_for(self, row: Row) -> Sequence[Block] | None:
        """What is known of the beginning of a row that may be read now; None where it must wait."""
        others = list(self._rows)
        if not self._slots.fits(len(others) + 1, max(each.most_tokens for each in [*others, row])):
            return None
        if not self._passes.mixes and others and others[0].asked.adapter != row.asked.adapter:
            return None
        found = [] if row.tells_prompt else self._prefixes.find(row.asked.adapter, row.ids)
        alike = [other for other in self._rows.reading if other.asked.adapter == row.asked.adapter and not row.tells_prompt]
        if any(self._prefixes.shared(row.ids, other.ids) > len(found) * BLOCK for other in alike):
            return None  # soon it will be known
        return found

    def _read(self) -> None:
        """A chunk of prompts: of the first that is being read, and of others that go with it."""
        reading = self._rows.reading
        width = min(reading[0].num_unread, self._chunk)
        rows = reading[:1]
        for row in reading[1:]:
            wide = max(width, min(row.num_unread, self._chunk))
            alike = wide <= WASTE * min(row.num_unread, *(each.num_unread for each in rows))
            if self._slots.has_states or row.tells_prompt != rows[0].tells_prompt:
                break
            if not alike or (len(rows) + 1) * wide > self._chunk:
                break
            width = wide
            rows.append(row)
        self._tried(rows, functools.partial(self._read_chunk, rows, [row.ids[row.done : row.done + width] for row in rows]))

    def _read_chunk(self, rows: Sequence[Row], ids: Sequence[Sequence[int]]) -> None:
        logits_BKV = self._logits(rows, ids, keep=0 if rows[0].tells_prompt else 1)
        for row, read, logits_KV in zip(rows, ids, logits_BKV, strict=True):
            row.done += len(read)
            if row.tells_prompt:
                self._tell_prompt(row, logits_KV[-len(read) :])  # shorter rows begin later in the pass
        ready = [index for index, row in enumerate(rows) if not row.num_unread]
        if ready:
            for index in ready:
                self._rows.become_writer(rows[index])
            self._tell([rows[index] for index in ready], logits_BKV[ready, -1])

    def _write(self) -> None:
        """One token of each row that is being written."""
        self._tried(self._rows.writing, functools.partial(self._write_token, self._rows.writing))

    def _write_token(self, rows: Sequence[Row]) -> None:
        logits_B1V = self._logits(rows, [row.ids[-1:] for row in rows], self._rows.lenders)
        for row in rows:
            row.done += 1
        self._tell(rows, logits_B1V[:, -1])

    def _tried(self, rows: Sequence[Row], work: Callable[[], None]) -> None:
        """Work on some rows; what goes wrong, such as short memory, is told to them, and they leave."""
        try:
            work()
        except Exception as error:  # told to whom it concerns: others' rows are not touched by it
            for row in rows:
                row.fail(error)
                self._rows.leave(row)

    def _logits(
        self, rows: Sequence[Row], ids: Sequence[Sequence[int]], lenders: Sequence[tuple[int, int]] = (), *, keep: int = 1
    ) -> Tensor:
        speakers = [self._speakers[row.asked.adapter] for row in rows]
        chunk = Chunk(start=rows[0].slot, ids=ids, done=[row.done for row in rows], speakers=speakers, lenders=lenders)
        return self._passes.logits(chunk, keep)

    def _tell(self, rows: Sequence[Row], logits_BV: Tensor) -> None:
        left = [row.asked.left(row.ids) for row in rows]
        tokens = chosen(logits_BV, [row.asked for row in rows], [row.num_written for row in rows], left)
        for row, token in zip(rows, tokens, strict=True):
            if not isfinite(token.logprob):
                row.fail(RunError(f"the model's numbers are not finite after token {len(row.ids)}"))
                self._slots.clear(row.slot)
                self._rows.leave(row)
                continue
            if token.end or not row.num_written:  # the answer too: it begins the dialogue's next prompt
                self._keep(row)
            row.tell(token)
            if token.end:
                self._rows.leave(row)

    def _keep(self, row: Row) -> None:
        """What of it others may begin with."""
        if isinstance(self._slots, Slots):
            row.blocks = self._prefixes.keep(row.asked.adapter, row.ids[: row.done], functools.partial(self._slots.part, row.slot))

    def _tell_prompt(self, row: Row, logits_QV: Tensor) -> None:
        """Of the chunk that was read, whose last token tells the next chunk's first."""
        start = row.done - len(logits_QV)
        ids = row.ids[start + 1 : row.done + 1]
        found = told(logits_QV[: len(ids)], torch.tensor(ids, device=logits_QV.device), [row.asked] * len(ids))
        row.prompt_told += [Token(id=id, logprob=logprob, top=top) for id, (logprob, top) in zip(ids, found, strict=True)]
        if not row.num_unread:
            row.tell_prompt()

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


def _closed() -> LuthierError:
    return RunError("the engine was closed")

"""An answer's text as its tokens come: whole characters only, and nothing of what a stop text may yet cut off."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from luthier.core.generation import Token
from luthier.data.tokenizer import ChatTokenizer

BROKEN = "�"
"""What the bytes of a character decode to of which some are missing."""
PATIENCE = 64
"""Tokens that are waited for: a character has four bytes at most, so that what is broken for so long was never one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """A token, and where its own text begins in the answer's."""

    token: Token
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What is told of an answer at once: text, the tokens that it is of, and, with the last piece, why it ends."""

    text: str
    spoken: tuple[Spoken, ...] = ()
    end: Literal["", "stop", "length"] = ""


class Decoding:
    """Token ids to text, piece by piece: all pieces together are what all ids decode to at once, special tokens left out."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._decode = tokenizer.pretrained.backend_tokenizer.decode
        self._ids: list[int] = []
        self._context, self._told = 0, 0
        """Ids from `_context` on are decoded again, for a token's text can depend on the one before; up to `_told` they have been told."""

    def add(self, id: int) -> str:
        """The text that is whole with this token; none where a character's end is still to come."""
        self._ids.append(id)
        before, now = self._text(self._told), self._text(len(self._ids))
        if now.endswith(BROKEN) and len(self._ids) - self._told < PATIENCE:
            return ""
        self._context, self._told = self._told, len(self._ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What was held back, at the end: a character that was not written to its end is U+FFFD."""
        return self._text(len(self._ids))[len(self._text(self._told)) :]

    def _text(self, end: int) -> str:
        return str(self._decode(self._ids[self._context : end], skip_special_tokens=True))


@dataclass(slots=True, kw_only=True)
class Writer:
    """Makes pieces of one answer's tokens, until one of them has an `end`."""

    decoding: Decoding
    stops: tuple[str, ...] = ()
    num_tokens: int = 0
    """So far, the stop token and what a stop text cut off included."""
    _held: str = ""
    _pending: list[Spoken] = field(default_factory=list)
    _told: int = 0
    """Characters, of all pieces."""

    def add(self, token: Token) -> Piece:
        """What can be told now."""
        self.num_tokens += 1
        if token.end == "stop":
            self._held += self.decoding.rest()
        self._pending.append(Spoken(token=token, start=self._told + len(self._held)))
        if token.end == "stop":
            return self._tell(self._held, "stop")
        self._held += self.decoding.add(token.id)
        if token.end:
            self._held += self.decoding.rest()
        if found := [place for stop in self.stops if (place := self._held.find(stop)) >= 0]:
            return self._tell(self._held[: min(found)], "stop")
        if token.end:
            return self._tell(self._held, token.end)
        return self._tell(self._held[: len(self._held) - may_begin(self._held, self.stops)], "")

    def _tell(self, text: str, end: Literal["", "stop", "length"]) -> Piece:
        """Tokens go with the piece that their text begins in; those that a stop text cut off go nowhere."""
        self._held, self._told = self._held[len(text) :], self._told + len(text)
        cut = bool(end and self._held)
        told = [each for each in self._pending if each.start < self._told or (end and not cut)]
        self._pending = self._pending[len(told) :]
        return Piece(text=text, spoken=tuple(told), end=end)


def may_begin(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of the text that may be the beginning of a stop text."""
    lengths = (length for stop in stops for length in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:length]))
    return max(lengths, default=0)

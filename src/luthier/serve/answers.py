"""The choices of one request, brought from the engine's thread into the event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Self

from luthier.core.generation import Asked, Ticket, Token, Unloaded
from luthier.serve.refused import Refused
from luthier.serve.served import Served
from luthier.serve.text import Decoding, Piece, Writer


class Choice:
    """One answer: what the engine tells of it, and the text that this makes."""

    def __init__(self, writer: Writer, wake: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        self.writer, self._wake, self._loop = writer, wake, loop
        self.prompt_told: tuple[Token, ...] = ()
        self.ended = False
        self._told: deque[Token | Exception] = deque()

    def prompt(self, tokens: tuple[Token, ...]) -> None:
        """Kept for who asks at the end."""
        self.prompt_told = tokens

    def token(self, token: Token) -> None:
        """Of the engine's thread: the event loop is woken once for all that it has not looked at."""
        self._told.append(token)
        self._stir()

    def failed(self, error: Exception) -> None:
        """Of the engine's thread."""
        self._told.append(error)
        self._stir()

    def take(self) -> list[Piece]:
        """What can be told since the last time; raises Refused where the engine failed."""
        pieces = []
        while self._told and not self.ended:
            told = self._told.popleft()
            if isinstance(told, Exception):
                self.ended = True
                if isinstance(told, Unloaded):
                    raise Refused(404, told.what, param="model", code="model_not_found") from told
                raise Refused(500, f"the engine could not go on: {told}", code="engine_failed") from told
            piece = self.writer.add(told)
            self.ended = bool(piece.end)
            pieces.append(piece)
        return pieces

    def _stir(self) -> None:
        if not self._wake.is_set():
            with suppress(RuntimeError):  # the loop is closed: the server has ended, and nobody waits
                self._loop.call_soon_threadsafe(self._wake.set)


class Answers:
    """`with Answers(…) as answers: async for number, piece in answers.pieces(): …`; what has not ended when it is left is cancelled."""

    def __init__(self, served: Served, asked: Sequence[Asked], stops: tuple[str, ...]) -> None:
        self._served, self._asked = served, asked
        self._wake, loop = asyncio.Event(), asyncio.get_running_loop()
        self.choices = [Choice(Writer(decoding=Decoding(served.tokenizer), stops=stops), self._wake, loop) for _ in asked]
        self._tickets: list[Ticket] = []

    def __enter__(self) -> Self:
        self._tickets = [self._served.engine.submit(asked, choice) for asked, choice in zip(self._asked, self.choices, strict=True)]
        return self

    def __exit__(self, *_: object) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, list[Piece]]]:
        """What is told of each choice, by its number, as it comes."""
        while not all(choice.ended for choice in self.choices):
            await self._wake.wait()
            self._wake.clear()
            for number, choice in enumerate(self.choices):
                if pieces := choice.take():
                    if choice.ended:
                        self._tickets[number].cancel()  # the engine does not know of stop texts
                    yield number, pieces

    @property
    def num_tokens(self) -> int:
        """Written so far, of all choices."""
        return sum(choice.writer.num_tokens for choice in self.choices)

"""One request and its answer over ASGI: a body that is counted while it is read, events, and a client that may leave at any time."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

from luthier.core import jsonl
from luthier.core.asgi import Receive, Scope, Send, headers_of
from luthier.serve.refused import Refused

LEFT = 499
"""The status that nobody is sent: nginx's, for a client that has left."""
SECONDS_TO_REFUSE = 5.0
"""For the last words of a stream, to a client that may not read them."""


class Left(Exception):
    """The client has gone."""


class Exchange:
    """What is asked, and what is answered, once."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = headers_of(scope)
        self.status = LEFT
        """What was answered; until then, that nobody has heard it."""
        self.whole = False
        """Whether the body has been read."""
        self._receive, self._send = receive, send
        self._begun = self._streams = False

    async def body(self, most_bytes: int) -> bytes:
        """What was sent; raises Refused as soon as it is more than may be."""
        said = self.headers.get("content-length", "")
        refused = Refused(413, f"the body has more than {most_bytes:,} bytes", code="body_too_large")
        if said.isdecimal() and int(said) > most_bytes:
            raise refused
        parts: list[bytes] = []
        num_bytes = 0
        while not self.whole:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Left
            parts.append(message.get("body", b""))
            num_bytes += len(parts[-1])
            if num_bytes > most_bytes:
                raise refused
            self.whole = not message.get("more_body", False)
        return b"".join(parts)

    async def unless_left(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this, once the body has been read; the client's leaving cancels it, and raises Left."""
        doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(self._leaving())
        try:
            await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise Left
            doing.result()
        finally:
            doing.cancel()
            leaving.cancel()
            await asyncio.gather(doing, leaving, return_exceptions=True)

    async def json(self, value: dict[str, Any], status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer with an object."""
        await self.answer(jsonl.dumps(value), b"application/json", status, headers)

    async def answer(self, text: str, kind: bytes, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer with text."""
        content = text.encode()
        await self._start(status, [(b"content-type", kind), (b"content-length", str(len(content)).encode()), *headers])
        await self._send({"type": "http.response.body", "body": content})

    async def event(self, value: dict[str, Any]) -> None:
        """One more of a stream of events; the first begins it."""
        if not self._streams:
            await self._start(200, [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")])
            self._streams = True
        await self._send({"type": "http.response.body", "body": f"data: {jsonl.dumps(value)}\n\n".encode(), "more_body": True})

    async def end_events(self) -> None:
        """The stream is whole."""
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def refuse(self, refused: Refused) -> None:
        """Answer with an error: where a stream has begun, as its last event; where another answer has, not at all."""
        if self._streams:
            with suppress(TimeoutError):
                async with asyncio.timeout(SECONDS_TO_REFUSE):
                    await self.event(refused.to_json())
                    await self.end_events()
        if self._begun:
            self.status = refused.status
            return
        headers = [(b"retry-after", str(refused.retry_seconds).encode())] if refused.retry_seconds else []
        if refused.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.json(refused.to_json(), refused.status, headers)

    async def _start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status, self._begun = status, True
        own = (b"x-content-type-options", b"nosniff")
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, own]})

    async def _leaving(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

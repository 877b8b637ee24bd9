"""A server that says what a test has it say: no mock of Luthier, but any stranger that speaks OpenAI's interface, well or badly."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What it answers: JSON, or the events of a stream."""

    code: int = 200
    body: Any = None
    events: tuple[Any, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """Where it is, and what it has heard."""

    url: str
    bodies: list[Json]
    headers: list[dict[str, str]]


@contextmanager
def stranger(answer: Callable[[Json], Reply]) -> Iterator[Stranger]:
    """A server that answers each request's body by a rule."""
    bodies: list[Json] = []
    headers: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say(Reply(body={"data": [{"id": "m"}]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append(body)
            headers.append(dict(self.headers))
            self.say(answer(body))

        def say(self, reply: Reply) -> None:
            self.send_response(reply.code)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "text/event-stream" if reply.events else "application/json")
            self.end_headers()
            for event in reply.events:
                self.wfile.write(b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n")
            if reply.body is not None:
                self.wfile.write(json.dumps(reply.body).encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Stranger(url=f"http://127.0.0.1:{server.server_port}", bodies=bodies, headers=headers)
    finally:
        server.shutdown()
        server.server_close()


def whole(text: str, *, end: str = "stop", **more: Any) -> Json:
    """An answer at once, as OpenAI has it, of as many tokens as words."""
    usage = {"prompt_tokens": 5, "completion_tokens": len(text.split())}
    message = {"role": "assistant", "content": text, **more}
    return {"choices": [{"index": 0, "message": message, "finish_reason": end}], "usage": usage}


def delta(end: str | None = None, **said: Any) -> Json:
    """A part of a streamed one."""
    return {"choices": [{"index": 0, "delta": said, "finish_reason": end}]}

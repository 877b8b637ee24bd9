"""Who may see the page: a browser of this machine that was given the token. Everything else is refused, whatever it asks for.

Plain ASGI: it stands before every route, so that no route can forget it.
"""

from collections.abc import Sequence
from hashlib import sha256
from urllib.parse import parse_qsl, urlencode

from luthier.core.asgi import Application, Message, Receive, Scope, Send, headers_of, is_bearer, is_token

HOSTS = {"127.0.0.1", "localhost", "[::1]"}
"""Names of this machine: a page elsewhere whose name was made to point here (DNS rebinding) sends its own."""
HEADERS = (
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
     b"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)  # fmt: skip
"""Of every answer. No script but the page's own runs, and nothing is asked of any other host."""


class Guard:
    """An application that is shown to those who have the token: in the link that was printed, in a cookie from then on, or as a bearer."""

    def __init__(self, application: Application, token: str) -> None:
        self.application, self.token = application, token
        self.cookie = f"luthier-{sha256(token.encode()).hexdigest()[:8]}"
        """Its own: cookies are shared by all ports of a machine."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is allowed."""
        if scope["type"] != "http":
            return
        headers = headers_of(scope)
        host = headers.get("host", "")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            await _answer(send, 403, "this page answers to the names of this machine only: 127.0.0.1, localhost")
        elif is_token(dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token", ""), self.token) and scope["method"] == "GET":
            await _answer(send, 303, "", [(b"location", _without_token(scope)), (b"set-cookie", self._cookie())])
        elif not self._knows(headers):
            await _answer(send, 403, "open the link that was printed: it has the token in it")
        elif scope["method"] not in ("GET", "HEAD") and not self._from_here(headers, host):
            await _answer(send, 403, "this was asked by another page")
        else:
            await self.application(scope, receive, _with_headers(send))

    def _knows(self, headers: dict[str, str]) -> bool:
        return is_token(self._of_cookie(headers), self.token) or is_bearer(headers, self.token)

    def _from_here(self, headers: dict[str, str], host: str) -> bool:
        """Whether what changes something was asked by this page, or by a program that has the token."""
        return headers.get("origin") == f"http://{host}" or is_bearer(headers, self.token)

    def _of_cookie(self, headers: dict[str, str]) -> str:
        """By hand: http.cookies drops all that stands behind a cookie of another program that it dislikes."""
        pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
        return next((value for name, _, value in pairs if name == self.cookie), "")

    def _cookie(self) -> bytes:
        return b"%s=%s; Path=/; HttpOnly; SameSite=Strict" % (self.cookie.encode(), self.token.encode())


def _without_token(scope: Scope) -> bytes:
    """The same place, without what must not be kept in a browser's history."""
    left = [(name, value) for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name != "token"]
    path: bytes = scope["raw_path"].partition(b"?")[0]
    return b"/" + path.lstrip(b"/") + (b"?" + urlencode(left).encode() if left else b"")


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *HEADERS]
        await send(message)

    return sending


async def _answer(send: Send, status: int, text: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    own = [(b"content-type", b"text/plain; charset=utf-8"), *headers, *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": (text + "\n").encode() if text else b""})

"""What a server's applications speak (ASGI), and the token that each of them asks for."""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def headers_of(scope: Scope) -> dict[str, str]:
    """A request's headers, their names in lower case."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def is_token(given: str, token: str) -> bool:
    """Whether what was given is the token, in the same time wherever they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def is_bearer(headers: dict[str, str], token: str) -> bool:
    """Whether a program has sent the token along, as `Authorization: Bearer …`."""
    return is_token(headers.get("authorization", "").removeprefix("Bearer "), token)

"""Requests to a server behind a URL, and what is raised where it does not answer.

Nothing is sent but to the URL itself: no proxy is asked, and no redirection followed, that could be given the token.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from luthier.core.errors import RunError, UsageError

SECONDS = 300.0
"""Of silence: a first answer may wait for kernels to be built."""

TOKEN = "put it into LUTHIER_TOKEN (`verify`: or another variable, with --token-env); of a server in a recipe: LUTHIER_HOST_TOKEN"


class Unanswered(RunError):
    """The server refused, or fell silent: `code` is HTTP's, or 0; `later` the seconds after which it wants to be asked again."""

    def __init__(self, what: str, *, where: str, change: str = "", code: int = 0, later: float = 0.0) -> None:
        super().__init__(what, where=where, change=change)
        self.code, self.later = code, later


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """A server; `token` goes along with every request, where there is one, and into no error."""

    url: str
    """Up to, and without, `/v1`."""
    token: str = field(default="", repr=False)
    seconds: float = SECONDS

    @classmethod
    def to(cls, url: str, token: str) -> "Wire":
        """By an address as people write it; raises UsageError for what is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise UsageError(f"no address of a server: {url!r}", change="write it as http://127.0.0.1:8101")
        return cls(url=url.rstrip("/").removesuffix("/v1"), token=token)

    def models(self) -> tuple[str, ...]:
        """Names that the server answers to."""
        told = self.told("/v1/models")
        try:
            return tuple(str(model["id"]) for model in told["data"])
        except (KeyError, TypeError) as error:
            raise RunError(f"the server's answer does not tell {error}", where=f"{self.url}/v1/models") from error

    def told(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that the server answers; raises Unanswered for anything else."""
        with self.open(path, body) as answer:
            return json.loads(answer.read())

    @contextmanager
    def open(self, path: str, body: dict[str, Any] | None = None) -> Iterator[HTTPResponse]:
        """The answer, to be read; Unanswered for a refusal, and for what goes wrong while it is read."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        request = Request(self.url + path, data=None if body is None else json.dumps(body).encode(), headers=headers)
        try:
            with build_opener(ProxyHandler({}), _NoRedirection).open(request, timeout=self.seconds) as answer:
                yield answer
        except HTTPError as error:
            raise self._refused(path, error) from error
        except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError, what is no JSON a ValueError
            what = f"no answer from the server: {error}"
            raise Unanswered(what, where=self.url + path, change="see that it runs, and its log") from error

    def _refused(self, path: str, error: HTTPError) -> Unanswered:
        with error:
            said = error.read(2000).decode("utf-8", "replace")
        if error.code in (401, 403):
            what = "the server wants another token" if self.token else "the server wants a token"
            return Unanswered(what, where=self.url, change=TOKEN, code=error.code)
        if self.token:
            said = said.replace(self.token, "***")
        wants = error.headers.get("Retry-After", "")
        later = float(wants) if wants.isdecimal() else 0.0
        return Unanswered(f"the server answers {error.code}: {said}", where=self.url + path, code=error.code, later=later)


class _NoRedirection(HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """None: the answer that would redirect is the error."""

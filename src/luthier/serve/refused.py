"""Requests that are not answered: a status, and OpenAI's error object."""

from typing import Any

from luthier.core.errors import LuthierError

KINDS = {429: "rate_limit_error", 500: "server_error", 503: "server_error", 504: "server_error"}
"""OpenAI's `type` by status; of all others it is the request that is wrong."""


class Refused(LuthierError):
    """Why a request is not answered; `param` is the parameter that is wrong, and `code` what programs know it by."""

    def __init__(self, status: int, what: str, *, param: str = "", code: str = "", retry_seconds: int = 0) -> None:
        self.status, self.param, self.code, self.retry_seconds = status, param, code, retry_seconds
        super().__init__(what)

    def to_json(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.what, "type": kind, "param": self.param or None, "code": self.code or None}}

"""A server behind a URL, asked what it holds of given tokens: what `luthier verify --url` compares with the model that was trained.

OpenAI's interface has no word for that. vLLM's has two, which Luthier's own server understands, too: `/tokenize`, and `prompt_logprobs`
of `/v1/completions`. Nothing is sent but to the URL itself: no proxy is asked, and no redirection followed, that could be given the token.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import numpy as np
import numpy.typing as npt

from luthier.core.chat import Conversation
from luthier.core.errors import ModelError, RunError, UsageError
from luthier.data.store import TokenRow

SECONDS = 300.0
"""For one row: a first one may wait for kernels to be built."""
WANTED = "vLLM and `luthier serve` have it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A model by its name on a server; `token` goes along with every request, where there is one."""

    url: str
    """Up to, and without, `/v1`."""
    model: str
    token: str = field(default="", repr=False)
    seconds: float = SECONDS

    @classmethod
    def at(cls, url: str, model: str, token: str) -> "Remote":
        """By an address as people write it; raises UsageError for what is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise UsageError(f"no address of a server: {url!r}", change="write it as http://127.0.0.1:8101")
        return cls(url=url.rstrip("/").removesuffix("/v1"), model=model, token=token)

    def models(self) -> tuple[str, ...]:
        """Names that the server answers to."""
        told = self._told("/v1/models", None)
        try:
            return tuple(str(model["id"]) for model in told["data"])
        except (KeyError, TypeError) as error:
            self._other("/v1/models", error)

    def refuse_unknown(self) -> None:
        """Raise ModelError where the server does not have the model."""
        if self.model not in (known := self.models()):
            change = f"it has {', '.join(known) or 'none'}; give one with --model"
            raise ModelError(f"the server has no model {self.model!r}", where=self.url, change=change)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """What the server makes of a conversation whose next turn it is asked for."""
        messages = [message.to_template() for message in conversation.messages]
        tools = {"tools": [dict(tool) for tool in conversation.tools]} if conversation.tools else {}
        told = self._told("/tokenize", {"model": self.model, "messages": messages, "add_generation_prompt": True, **tools})
        try:
            return [int(id) for id in told["tokens"]]
        except (KeyError, TypeError, ValueError) as error:
            self._other("/tokenize", error)

    def log_probabilities(self, rows: Sequence[TokenRow]) -> list[npt.NDArray[np.float64]]:
        """Of each row's supervised tokens, each after all that stand before it in its row."""
        return [self._of_row(row) for row in rows]

    def _of_row(self, row: TokenRow) -> npt.NDArray[np.float64]:
        wanted = np.flatnonzero(row.supervised[1:]) + 1
        ids = [int(id) for id in row.ids[: wanted[-1] + 1]]  # what stands behind the last of them tells nothing of it
        # one token is written, which nobody reads: vLLM writes no fewer
        body = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        told = self._told("/v1/completions", body)
        try:
            of_prompt = told["choices"][0]["prompt_logprobs"]
            if of_prompt is None:
                raise KeyError("prompt_logprobs")
            return np.array([float(of_prompt[place][str(ids[place])]["logprob"]) for place in wanted])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            self._other("/v1/completions", error)

    def _told(self, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON that the server answers; raises RunError for anything else."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        request = Request(self.url + path, data=None if body is None else json.dumps(body).encode(), headers=headers)
        try:
            with build_opener(ProxyHandler({}), _NoRedirection).open(request, timeout=self.seconds) as answer:
                return json.loads(answer.read())
        except HTTPError as error:
            self._refused(path, error)
        except (URLError, OSError, ValueError) as error:
            raise RunError(f"no answer from the server: {error}", where=self.url + path, change="see that it runs, and its log") from error

    def _refused(self, path: str, error: HTTPError) -> NoReturn:
        said = error.read(2000).decode("utf-8", "replace")
        if error.code in (401, 403):
            change = "name the environment variable that has it with --token-env"
            raise RunError("the server wants another token" if self.token else "the server wants a token", where=self.url, change=change)
        if (error.code == 404 and path == "/tokenize") or error.code == 405:
            self._lacks(path)
        raise RunError(f"the server answers {error.code}: {said}", where=self.url + path)

    def _other(self, path: str, error: Exception) -> NoReturn:
        raise RunError(f"the server's answer does not tell {error}", where=self.url + path, change=f"take one that does: {WANTED}")

    def _lacks(self, path: str) -> NoReturn:
        raise RunError(f"the server has no {path}: its tokens cannot be compared", where=self.url, change=f"take one that has: {WANTED}")


class _NoRedirection(HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """None: the answer that would redirect is the error."""

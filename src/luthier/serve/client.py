"""A server behind a URL, asked what it holds of given tokens: what `luthier verify --url` compares with the model that was trained.

OpenAI's interface has no word for that. vLLM's has two, which Luthier's own server understands, too: `/tokenize`, and `prompt_logprobs`
of `/v1/completions`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from luthier.core.chat import Conversation
from luthier.core.errors import ModelError, RunError
from luthier.data.store import TokenRow
from luthier.serve.wire import Unanswered, Wire

WANTED = "vLLM and `luthier serve` have it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A model by its name on a server."""

    wire: Wire
    model: str

    @classmethod
    def at(cls, url: str, model: str, token: str) -> "Remote":
        """By an address as people write it; raises UsageError for what is none."""
        return cls(wire=Wire.to(url, token), model=model)

    def refuse_unknown(self) -> None:
        """Raise ModelError where the server does not have the model."""
        if self.model not in (known := self.wire.models()):
            change = f"it has {', '.join(known) or 'none'}; give one with --model"
            raise ModelError(f"the server has no model {self.model!r}", where=self.wire.url, change=change)

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

    def _told(self, path: str, body: dict[str, Any]) -> Any:
        try:
            return self.wire.told(path, body)
        except Unanswered as error:
            if (error.code == 404 and path == "/tokenize") or error.code == 405:
                what = f"the server has no {path}: its tokens cannot be compared"
                raise RunError(what, where=self.wire.url, change=f"take one that has: {WANTED}") from error
            raise

    def _other(self, path: str, error: Exception) -> NoReturn:
        raise RunError(f"the server's answer does not tell {error}", where=self.wire.url + path, change=f"take one that does: {WANTED}")

"""The chat types that data, evaluation and serving share: Conversation, Message, and Completer, anything that answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. `tool_calls` are OpenAI's objects as they came, handed to the chat template unchanged."""

    role: Role
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str = ""
    name: str = ""

    def to_template(self) -> dict[str, Any]:
        """The message as chat templates and JSON files expect it, empty fields left out."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        if self.name:
            message["name"] = self.name
        return message


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns in order, and the tools that were on offer (OpenAI's function schemas)."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer. `stopped` is false where `max_new_tokens` cut it; the times count from when its whole batch was asked.

    What a server does not tell is 0 tokens, and a first token after NaN seconds.
    """

    text: str
    num_prompt_tokens: int
    num_tokens: int
    stopped: bool
    first_token_seconds: float
    seconds: float


class Completer(Protocol):
    """Anything that answers conversations greedily: a model in this process, a server behind a URL."""

    def complete(self, conversations: Sequence[Conversation], *, max_new_tokens: int) -> list[Completion]:
        """One answer per conversation, in order."""
        ...


class Chooser(Completer, Protocol):
    """A Completer that can be held to a closed set of answers."""

    def choose(self, conversations: Sequence[Conversation], *, labels: Sequence[str]) -> list[Completion]:
        """One of the labels, of which there are two or more, for each conversation, in order."""
        ...

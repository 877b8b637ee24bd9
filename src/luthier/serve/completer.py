"""A server behind a URL as a Completer: its answers over `/v1/chat/completions`, greedy, several asked at once.

Its template and its stops are its own. Answers are streamed where it streams, which tells when the first token came.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import Any

from luthier.core import jsonl
from luthier.core.chat import Completion, Conversation, Message
from luthier.core.errors import LuthierError, ModelError, RunError
from luthier.serve.asking import WAITS, answered, patiently
from luthier.serve.wire import Unanswered, Wire

CHAT = "/v1/chat/completions"
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(slots=True, kw_only=True)
class RemoteCompleter:
    """A model by its name on a server. A Completion's times count from when its own row was asked, by the last try."""

    wire: Wire
    model: str
    spoken: Callable[[Conversation], str]
    """A last turn as its text: tool calls, which a server tells apart, as the recipe's template would have written them."""
    waits: Sequence[float] = WAITS
    streams: bool = True
    """Until the server says that it does not."""

    @classmethod
    def at(cls, wire: Wire, model: str, spoken: Callable[[Conversation], str]) -> "RemoteCompleter":
        """The only model there, where none is named; raises ModelError where there are several."""
        if not model:
            known = wire.models()
            if len(known) != 1:
                change = f"it has {', '.join(known) or 'none'}; name one as {wire.url}/v1#MODEL"
                raise ModelError(f"the server has {len(known)} models", where=wire.url, change=change)
            (model,) = known
        return cls(wire=wire, model=model, spoken=spoken)

    @property
    def name(self) -> str:
        """As reports call it."""
        return f"{self.model} at {self.wire.url}"

    def complete(self, conversations: Sequence[Conversation], *, max_new_tokens: int) -> list[Completion]:
        """One answer per conversation, in order; raises the first error, after which nothing more is asked."""
        return answered(conversations, lambda one: patiently(lambda: self._streamed_or_not(one, max_new_tokens), self.waits))

    def choose(self, conversations: Sequence[Conversation], *, labels: Sequence[str]) -> list[Completion]:
        """OpenAI's interface has no word for it."""
        raise ModelError("a server cannot be held to a set of labels", where=self.wire.url, change="let the task's scorer be `label`")

    def _streamed_or_not(self, conversation: Conversation, max_new_tokens: int) -> Completion:
        try:
            return self._asked(conversation, max_new_tokens)
        except Unanswered as error:
            if not self.streams or error.code not in (400, 422) or "stream" not in error.what:
                raise
        self.streams = False
        return self._asked(conversation, max_new_tokens)

    def _asked(self, conversation: Conversation, max_new_tokens: int) -> Completion:
        messages = [_as_openai(message) for message in conversation.messages]
        body: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": 0}
        tools = {"tools": [dict(tool) for tool in conversation.tools]} if conversation.tools else {}
        body |= {"max_tokens": max_new_tokens, **tools, **(STREAMED if self.streams else {})}
        began = time.perf_counter()
        try:
            with self.wire.open(CHAT, body) as answer:
                heard = _streamed(answer) if "event-stream" in answer.headers.get("Content-Type", "") else _whole(answer)
        except (AttributeError, KeyError, TypeError) as error:
            raise RunError(f"the server's answer is not as OpenAI's are: {error}", where=self.wire.url + CHAT) from error
        if not heard.end:
            raise Unanswered("the answer broke off", where=self.wire.url + CHAT)
        return Completion(
            text=heard.text if not heard.calls else self._written(conversation, heard),
            num_prompt_tokens=heard.usage.get("prompt_tokens", 0),
            num_tokens=heard.usage.get("completion_tokens", 0),
            stopped=heard.end != "length",
            first_token_seconds=heard.first - began,
            seconds=time.perf_counter() - began,
        )

    def _written(self, conversation: Conversation, heard: "_Heard") -> str:
        calls = tuple(_read_call(call) for _, call in sorted(heard.calls.items()))
        turn = Message(role="assistant", content=heard.text, tool_calls=calls)
        try:
            return self.spoken(Conversation(messages=(*conversation.messages, turn), tools=conversation.tools))
        except LuthierError:  # the template writes none, so no reference has one either
            return heard.text + jsonl.dumps(calls)


@dataclass(slots=True, kw_only=True)
class _Heard:
    """What came of an answer."""

    text: str = ""
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Tool calls by their place, each a name and arguments that come in pieces."""
    end: str = ""
    first: float = math.nan
    """When its first token came; NaN where that cannot be told."""
    usage: Mapping[str, int] = field(default_factory=dict)

    def add(self, choice: Mapping[str, Any], said: Mapping[str, Any]) -> None:
        """A part of the message, or all of it."""
        self.text += said.get("content") or ""
        for place, call in enumerate(said.get("tool_calls") or ()):
            known = self.calls.setdefault(call.get("index", place), {"name": "", "arguments": ""})
            known["name"] += call["function"].get("name") or ""
            known["arguments"] += call["function"].get("arguments") or ""
        self.end = choice.get("finish_reason") or self.end


def _streamed(answer: HTTPResponse) -> _Heard:
    heard = _Heard()
    for event in _events(answer):
        heard.usage = event.get("usage") or heard.usage
        for choice in event.get("choices") or ():
            said = choice.get("delta") or {}
            if math.isnan(heard.first) and any(value for name, value in said.items() if name != "role"):
                heard.first = time.perf_counter()
            heard.add(choice, said)
    return heard


def _whole(answer: HTTPResponse) -> _Heard:
    told = _object(answer.read())
    heard = _Heard(usage=told.get("usage") or {})
    for choice in told.get("choices") or ():
        heard.add(choice, choice.get("message") or {})
    return heard


def _events(answer: HTTPResponse) -> Iterator[dict[str, Any]]:
    """Server-sent events; an error among them is one of the server's."""
    for line in answer:
        data = line.removeprefix(b"data:").strip()
        if data == line.strip() or data == b"[DONE]":
            continue
        yield _object(data)


def _object(text: bytes) -> dict[str, Any]:
    told = json.loads(text)
    if not isinstance(told, dict):
        raise ValueError("it is no JSON object")
    if told.get("error"):
        raise ValueError(jsonl.dumps(told["error"])[:2000])
    return told


def _as_openai(message: Message) -> dict[str, Any]:
    """A turn as servers want it, who take a tool call's arguments only as text."""
    told = message.to_template()
    if message.tool_calls:
        told["tool_calls"] = [_write_call(place, call) for place, call in enumerate(message.tool_calls)]
    return told


def _write_call(place: int, call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function", call))
    arguments = function.get("arguments", {})
    written = arguments if isinstance(arguments, str) else jsonl.dumps(arguments)
    return {"id": call.get("id", f"call_{place}"), "type": "function", "function": {"name": function["name"], "arguments": written}}


def _read_call(call: Mapping[str, str]) -> dict[str, Any]:
    """Arguments as an object again, where they are one: templates write them as data has them."""
    try:
        arguments = json.loads(call["arguments"] or "{}")
    except ValueError:
        arguments = call["arguments"]
    return {"type": "function", "function": {"name": call["name"], "arguments": arguments}}

"""What is told: OpenAI's objects of answers and their parts, and vLLM's of prompts."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from luthier.core.generation import Token
from luthier.data.tokenizer import ChatTokenizer
from luthier.serve.text import BROKEN, Piece, Spoken

Json = dict[str, Any]
Top = int | Literal["none"]
"""Likeliest tokens beside each; `none`: no log-probabilities at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of a request."""

    prompt: int
    completion: int

    def to_json(self) -> Json:
        """OpenAI's names."""
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": self.prompt + self.completion}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatForm:
    """Answers of `/v1/chat/completions`."""

    model: str
    tokenizer: ChatTokenizer
    num_top: Top
    prompts: Sequence[Sequence[int]] = ()
    """Each choice's, where token ids are told."""
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Json], usage: Usage) -> Json:
        """All choices at once."""
        return self._object("chat.completion", choices, usage=usage.to_json(), **_prompt_ids(self.prompts[:1]))

    def choice(self, number: int, piece: Piece) -> Json:
        """A whole choice."""
        message = {"role": "assistant", "content": piece.text}
        choice = {"index": number, "message": message, "logprobs": self._logprobs(piece), "finish_reason": piece.end}
        return choice | _ids(self.prompts, piece)

    def openings(self, number: int) -> list[Json]:
        """What a choice's stream begins with."""
        choice = {"index": number, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self._object("chat.completion.chunk", [choice], **_prompt_ids(self.prompts[:1]))]

    def part(self, number: int, piece: Piece) -> Json:
        """A part of a choice."""
        delta = {"content": piece.text} if piece.text or piece.spoken else {}
        choice = {"index": number, "delta": delta, "logprobs": self._logprobs(piece), "finish_reason": piece.end or None}
        return self._object("chat.completion.chunk", [choice | _ids(self.prompts, piece)])

    def usage(self, usage: Usage) -> Json:
        """What a stream ends with, where it is asked for."""
        return self._object("chat.completion.chunk", [], usage=usage.to_json())

    def _object(self, kind: str, choices: Sequence[Json], **more: Json) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": list(choices), **more}

    def _logprobs(self, piece: Piece) -> Json | None:
        if isinstance(self.num_top, str):
            return None
        return {"content": [self._token(each.token, self.num_top) for each in piece.spoken], "refusal": None}

    def _token(self, token: Token, num_top: int) -> Json:
        top = [self._one(id, logprob) for id, logprob in token.top[:num_top]]
        return {**self._one(token.id, token.logprob), "top_logprobs": top}

    def _one(self, id: int, logprob: float) -> Json:
        text = self.tokenizer.decode([id])
        return {"token": text, "logprob": logprob, "bytes": None if BROKEN in text else list(text.encode())}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextForm:
    """Answers of `/v1/completions`."""

    model: str
    tokenizer: ChatTokenizer
    num_top: Top
    num_prompt_top: Top = "none"
    prompts: Sequence[Sequence[int]] = ()
    """Each choice's, where token ids are told."""
    id: str = field(default_factory=lambda: f"cmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Json], usage: Usage) -> Json:
        """All choices at once."""
        return self._object(choices, usage=usage.to_json())

    def choice(self, number: int, piece: Piece) -> Json:
        """A whole choice, or a part of it."""
        choice = {"index": number, "text": piece.text, "logprobs": self._logprobs(piece.spoken), "finish_reason": piece.end or None}
        return choice | _ids(self.prompts, piece)

    def prompt(self, number: int, tokens: Sequence[Token]) -> Json:
        """What a whole choice tells of its prompt: how probable its tokens are, of which the first has nothing before it, and their ids."""
        ids = _prompt_ids(self.prompts[number : number + 1])
        if isinstance(self.num_prompt_top, str):
            return ids
        return {**ids, "prompt_logprobs": [None, *(self._ranked(token, self.num_prompt_top) for token in tokens)]}

    def openings(self, number: int) -> list[Json]:
        """What a choice's stream begins with: its prompt, where that is told."""
        ids = _prompt_ids(self.prompts[number : number + 1])
        return [self._object([{**self.choice(number, Piece(text="")), **ids}])] if ids else []

    def part(self, number: int, piece: Piece) -> Json:
        """A part of a choice."""
        return self._object([self.choice(number, piece)])

    def usage(self, usage: Usage) -> Json:
        """What a stream ends with, where it is asked for."""
        return self._object([], usage=usage.to_json())

    def _object(self, choices: Sequence[Json], **more: Json) -> Json:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model, "choices": list(choices), **more}

    def _logprobs(self, spoken: Sequence[Spoken]) -> Json | None:
        if isinstance(self.num_top, str):
            return None
        top = [{self.tokenizer.decode([id]): logprob for id, logprob in each.token.top[: self.num_top]} for each in spoken]
        return {
            "tokens": [self.tokenizer.decode([each.token.id]) for each in spoken],
            "token_logprobs": [each.token.logprob for each in spoken],
            "top_logprobs": top,
            "text_offset": [each.start for each in spoken],
        }

    def _ranked(self, token: Token, num_top: int) -> Mapping[str, Json]:
        """By id: the likeliest, and the prompt's own, whose rank is known where it is one of them."""
        ranks = {id: (rank, logprob) for rank, (id, logprob) in enumerate(token.top[:num_top], start=1)}
        ranked = {token.id: ranks.get(token.id, (None, token.logprob)), **ranks}
        return {
            str(id): {"logprob": logprob, "rank": rank, "decoded_token": self.tokenizer.decode([id])}
            for id, (rank, logprob) in ranked.items()
        }


def _ids(prompts: Sequence[Sequence[int]], piece: Piece) -> Json:
    """A part's tokens by vLLM's name, where prompts' are told."""
    return {"token_ids": [each.token.id for each in piece.spoken]} if prompts else {}


def _prompt_ids(prompts: Sequence[Sequence[int]]) -> Json:
    return {"prompt_token_ids": list(prompts[0])} if prompts else {}

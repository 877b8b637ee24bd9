"""What is asked of an engine that writes tokens, and what it tells meanwhile: the seam between decoding and whoever serves it."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from luthier.core.errors import RunError

Choices = Mapping[int, "Choices"]
"""Tokens one of which has to follow, each with those that may follow it; what has none ends the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How each next token is chosen. A draw depends on the seed, the token's place and the probabilities: never on who shares the batch."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: the likeliest."""
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt as tokens, who is to go on with it, and how."""

    ids: tuple[int, ...]
    sampling: Sampling
    stop_ids: frozenset[int] = field(default_factory=frozenset)
    adapter: str = ""
    """By the name under which the engine has it; empty: the base alone."""
    num_top: int = 0
    """Likeliest tokens that are told beside each token that is written."""
    prompt_told: bool = False
    """Whether the prompt's own log-probabilities are wanted."""
    tempered: bool = False
    """Whether the answer's log-probabilities are those after temperature (top_p apart), by which its tokens were drawn."""
    choices: Choices = field(default_factory=dict)
    """What the answer is held to; empty: it is free."""

    def left(self, ids: Sequence[int]) -> Choices:
        """What may follow a prompt with its answer so far."""
        return functools.reduce(lambda choices, id: choices[id], ids[len(self.ids) :], self.choices) if self.choices else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token, how probable it was, in nats, and the likeliest in its place: before temperature and top_p, unless `tempered`."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    end: Literal["", "stop", "length"] = ""
    """Why nothing follows: a stop token, which this one is, or the last of its `choices`; or `max_new_tokens`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A whole answer, as tokens, and how probable each was to who wrote it, in nats."""

    ids: tuple[int, ...]
    """With the stop token, where it ends with one."""
    logprobs: tuple[float, ...]
    stopped: bool
    """False where `max_new_tokens` cut it."""

    @property
    def before_stop(self) -> tuple[int, ...]:
        """The tokens that say something: without the stop token."""
        return self.ids[:-1] if self.stopped else self.ids


class Unloaded(RunError):
    """The adapter that was to answer has been taken away."""


class Listener(Protocol):
    """Who asked. Called from the engine's own thread, in order; it must return at once."""

    def prompt(self, tokens: tuple[Token, ...]) -> None:
        """The prompt's tokens from the second on, where `prompt_told`; before the first token that is written."""
        ...

    def token(self, token: Token) -> None:
        """One more token; after the one with an `end` nothing is told."""
        ...

    def failed(self, error: Exception) -> None:
        """Nothing more comes: what went wrong."""
        ...


class Ticket(Protocol):
    """A request that is being worked on."""

    def cancel(self) -> None:
        """Work no more on it and give its place to the next; nothing more is told. Harmless when it has ended."""
        ...


class Engine(Protocol):
    """Answers many requests at once. Thread-safe: `submit` may be called from any thread."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters over its base."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together, at most."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether it was closed, or could not go on: nothing is answered any more."""
        ...

    def submit(self, asked: Asked, listener: Listener) -> Ticket:
        """Queue a request; the caller has checked that it fits `max_length` and that the adapter is known."""
        ...

    def close(self) -> None:
        """End what is being written (each listener is told that it failed) and free the model."""
        ...

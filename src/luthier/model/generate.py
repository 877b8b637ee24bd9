"""Greedy answers from a model in this process: a Completer over the engine, which works as long as the call lasts."""

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.core.chat import Completion, Conversation, Message
from luthier.core.generation import Asked, Choices, Drawn, Sampling, Token
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.choice import closed
from luthier.model.decode import Decoder, active_adapter
from luthier.model.shard import evaluating
from luthier.plan.asked import BATCH_TOKENS, SLOTS

FREE: Choices = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A text to go on with: its tokens, by how many at most, and up to which texts."""

    ids: tuple[int, ...]
    max_new_tokens: int
    until: tuple[str, ...] = ()


class LocalCompleter:
    """A Completer over a loaded model, base or adapted. In float32 an answer does not depend on the rows that are written beside it.

    Whatever sampling or penalties the model's own generation config asks for is left out: the same prompt gives the same answer.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: ChatTokenizer, *, batch_tokens: int = BATCH_TOKENS) -> None:
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens

    @property
    def device(self) -> torch.device:
        """Where the model lies, so that its memory can be measured."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def complete(self, conversations: Sequence[Conversation], *, max_new_tokens: int) -> list[Completion]:
        """One answer per conversation, in order; long prompts go first, so that what does not fit into memory fails at once.

        Nothing is kept until the next call, before which the weights may have been trained.
        """
        prompts = [self.tokenizer.prompt_ids(conversation) for conversation in conversations]
        return [self._completion(answer) for answer in self._written(prompts, max_new_tokens)]

    def choose(self, conversations: Sequence[Conversation], *, labels: Sequence[str]) -> list[Completion]:
        """One of two labels or more for each conversation: each token the likeliest of those with which one of them goes on.

        What is written ends as soon as one label alone is left, most often with the token that follows the prompt. What all labels begin
        with counts as the prompt's.
        """
        prompts = [self.tokenizer.prompt_ids(conversation) for conversation in conversations]
        if not prompts:
            return []
        answers = self._as_answers(conversations[0], labels)
        found = closed(answers, self.tokenizer.stop_ids)
        written = self._written([[*prompt, *found.beginning] for prompt in prompts], max(map(len, answers)), found.choices)
        return [answer.completion(found.said[found.beginning + answer.ids]) for answer in written]

    def go_on(self, openings: Sequence[Opening]) -> list[Completion]:
        """What is written after each opening, without the text that ends it."""
        asked = [self._asked(opening.ids, opening.max_new_tokens) for opening in openings]
        answers = written(
            self.model, asked, batch_tokens=self.batch_tokens, over=lambda number, answer: self._says(answer, openings[number].until)
        )
        return [self._ended(answer, opening.until) for answer, opening in zip(answers, openings, strict=True)]

    def told(self, rows: Sequence[Sequence[int]]) -> list[tuple[Token, ...]]:
        """Each row's tokens from the second on: how probable after those before it, and the likeliest in its place."""
        asked = [replace(self._asked(row, 1), num_top=1, prompt_told=True) for row in rows]
        return [answer.prompt_told for answer in written(self.model, asked, batch_tokens=self.batch_tokens)]

    def _written(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, choices: Choices = FREE) -> list["Answer"]:
        asked = [replace(self._asked(prompt, max_new_tokens), choices=choices) for prompt in prompts]
        return written(self.model, asked, batch_tokens=self.batch_tokens)

    def _asked(self, ids: Sequence[int], max_new_tokens: int) -> Asked:
        sampling, stop_ids = Sampling(max_new_tokens=max_new_tokens), frozenset(self.tokenizer.stop_ids)
        return Asked(ids=tuple(ids), sampling=sampling, stop_ids=stop_ids, adapter=active_adapter(self.model))

    def _says(self, answer: "Answer", texts: Sequence[str]) -> bool:
        """Whether one of the texts stands in it, which may be a special token's."""
        said = self.tokenizer.decode(answer.ids) if texts else ""
        return any(text in said for text in texts)

    def _ended(self, answer: "Answer", until: Sequence[str]) -> Completion:
        found = self._completion(answer)
        text = functools.reduce(lambda text, end: text.partition(end)[0], until, found.text)
        return replace(found, text=text, stopped=found.stopped or self._says(answer, until))

    def _as_answers(self, conversation: Conversation, labels: Sequence[str]) -> dict[tuple[int, ...], str]:
        """Their tokens with an end of turn, as the template writes them after this conversation, and so after others."""
        prompt = self.tokenizer.render(conversation, add_generation_prompt=True)
        found = {}
        for label in labels:
            turn = Message(role="assistant", content=label)
            said = Conversation(messages=(*conversation.messages, turn), tools=conversation.tools)
            ids = self.tokenizer.encode_turn(prompt, self.tokenizer.answer_text(prompt, said)).answer
            found[tuple(ids)] = label
        return found

    def _completion(self, answer: "Answer") -> Completion:
        """A row up to its stop token, which is counted but not part of the text."""
        return answer.completion(self.tokenizer.said(answer.drawn.before_stop))


def written(
    model: PreTrainedModel | PeftModel,
    asked: Sequence[Asked],
    *,
    batch_tokens: int = BATCH_TOKENS,
    look: Callable[[], None] = lambda: None,
    over: Callable[[int, "Answer"], bool] = lambda number, answer: False,
) -> list["Answer"]:
    """What a model writes to each, in order, many at once; `look` is called between two tokens, and what it raises ends the writing.

    `over` says of a request, by its number, whether what is written is enough.
    """
    if not asked:
        return []
    longest = max(len(one.ids) + one.sampling.max_new_tokens for one in asked)
    answers = [Answer(began=time.perf_counter(), num_prompt_tokens=len(one.ids)) for one in asked]
    with (
        evaluating(model),
        closing(Decoder(model, slots=SLOTS, max_length=longest, cache_tokens=batch_tokens, prefix_tokens=batch_tokens)) as decoder,
    ):
        rows = sorted(range(len(asked)), key=lambda row: -len(asked[row].ids))
        left = {row: decoder.submit(asked[row], answers[row]) for row in rows}
        while decoder.step():
            look()
            for answer in answers:
                answer.check()
            for row in [row for row in left if answers[row].tokens]:
                if answers[row].tokens[-1].end or over(row, answers[row]):
                    left.pop(row).cancel()
    for answer in answers:
        answer.check()
    return answers


@dataclass(slots=True, kw_only=True)
class Answer:
    """A listener: what came, and when."""

    began: float
    num_prompt_tokens: int
    tokens: list[Token] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    prompt_told: tuple[Token, ...] = ()
    error: Exception | None = None

    def prompt(self, tokens: tuple[Token, ...]) -> None:
        """Where it was asked for."""
        self.prompt_told = tokens

    def token(self, token: Token) -> None:
        """One more."""
        self.tokens.append(token)
        self.times.append(time.perf_counter())

    def failed(self, error: Exception) -> None:
        """To be raised where it was asked."""
        self.error = error

    def check(self) -> None:
        """Raise what went wrong."""
        if self.error:
            raise self.error

    @property
    def ids(self) -> tuple[int, ...]:
        """What was written."""
        return tuple(token.id for token in self.tokens)

    @property
    def drawn(self) -> Drawn:
        """With how probable each token was."""
        logprobs = tuple(token.logprob for token in self.tokens)
        return Drawn(ids=self.ids, logprobs=logprobs, stopped=self.tokens[-1].end == "stop")

    def completion(self, text: str) -> Completion:
        """With what it says."""
        return Completion(
            text=text,
            num_prompt_tokens=self.num_prompt_tokens,
            num_tokens=len(self.tokens),
            stopped=self.tokens[-1].end == "stop",
            first_token_seconds=self.times[0] - self.began,
            seconds=self.times[-1] - self.began,
        )

"""Greedy answers from a model in this process: a Completer over the engine, which works as long as the call lasts."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.core.chat import Completion, Conversation
from luthier.core.generation import Asked, Sampling, Token
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.decode import Decoder, active_adapter
from luthier.plan.scoring import BATCH_TOKENS

SLOTS = 64
"""Rows that are written at once, where they are short."""


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
        if not prompts:
            return []
        longest = max(map(len, prompts)) + max_new_tokens
        answers = [_Answer(began=time.perf_counter()) for _ in prompts]
        with _evaluating(self.model):
            decoder = Decoder(self.model, slots=SLOTS, max_length=longest, cache_tokens=self.batch_tokens, prefix_tokens=self.batch_tokens)
            for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row])):
                asked = Asked(
                    ids=tuple(prompts[row]),
                    sampling=Sampling(max_new_tokens=max_new_tokens),
                    stop_ids=frozenset(self.tokenizer.stop_ids),
                    adapter=active_adapter(self.model),
                )
                decoder.submit(asked, answers[row])
            while decoder.step():
                for answer in answers:
                    answer.check()
        return [self._completion(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def _completion(self, prompt: Sequence[int], answer: "_Answer") -> Completion:
        """A row up to its stop token, which is counted but not part of the text."""
        answer.check()
        *before, last = answer.tokens
        ids = [token.id for token in (before if last.end == "stop" else answer.tokens)]
        text = self.tokenizer.pretrained.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Completion(
            text=str(text),
            num_prompt_tokens=len(prompt),
            num_tokens=len(answer.tokens),
            stopped=last.end == "stop",
            first_token_seconds=answer.times[0] - answer.began,
            seconds=answer.times[-1] - answer.began,
        )


@dataclass(slots=True, kw_only=True)
class _Answer:
    """A listener: what came, and when."""

    began: float
    tokens: list[Token] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    error: Exception | None = None

    def prompt(self, tokens: tuple[Token, ...]) -> None:
        """Not asked for."""

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


@contextmanager
def _evaluating(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it was in, so a training loop may ask for answers between two steps."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

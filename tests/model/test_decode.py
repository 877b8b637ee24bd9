"""The engine writes what the model alone would write, whoever shares the batch: greedy tokens against transformers' own generate."""

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.core.generation import Asked, Sampling, Token
from luthier.model.decode import Decoder
from tests.model.zoo import FAMILIES, FOREIGN, MIXTURES, VOCABULARY, adapted, tiny

EVERY = sorted({**FAMILIES, **FOREIGN, **MIXTURES})


@dataclass
class Heard:
    """What a listener was told."""

    tokens: list[Token] = field(default_factory=list)
    prompts: list[tuple[Token, ...]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def prompt(self, tokens: tuple[Token, ...]) -> None:
        self.prompts.append(tokens)

    def token(self, token: Token) -> None:
        self.tokens.append(token)
        if token.end:
            self.over.set()

    def failed(self, error: Exception) -> None:
        self.errors.append(error)
        self.over.set()

    @property
    def ids(self) -> list[int]:
        assert self.errors == []
        return [token.id for token in self.tokens]


def asked(ids: Sequence[int], num: int = 12, *, stop: Sequence[int] = (), **given: Any) -> Asked:
    sampling = {name: given.pop(name) for name in ("temperature", "top_p", "seed") if name in given}
    return Asked(ids=tuple(ids), sampling=Sampling(max_new_tokens=num, **sampling), stop_ids=frozenset(stop), **given)


def engine(model: PreTrainedModel | PeftModel, **changed: Any) -> Decoder:
    return Decoder(model.eval(), **{"slots": 8, "max_length": 200, "cache_tokens": 2_000, "chunk": 64, **changed})


def written(decoder: Decoder, *requests: Asked) -> list[list[int]]:
    """All at once."""
    heard = [Heard() for _ in requests]
    for request, listener in zip(requests, heard, strict=True):
        decoder.submit(request, listener)
    decoder.run_until_idle()
    return [listener.ids for listener in heard]


@torch.no_grad()
def generated(model: PreTrainedModel | PeftModel, ids: Sequence[int], num: int) -> list[int]:
    """The oracle: the model alone, by transformers."""
    given = torch.tensor([ids])
    out = model.generate(
        input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=num, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    found: list[int] = out[0, len(ids) :].tolist()
    return found


def prompts(seed: int, number: int) -> list[list[int]]:
    """Of one token to more than a chunk; every third begins as others do."""
    draw = random.Random(seed)

    def text(length: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(length)]

    shared = text(40)
    return [[*(shared if row % 3 == 0 else ()), *text(draw.choice([1, 2, 5, 20, 70]))] for row in range(number)]


@pytest.mark.parametrize("family", EVERY)
def test_among_neighbours_who_come_and_go_an_answer_is_what_the_model_alone_generates(family: str) -> None:
    model, draw = adapted(tiny(family)).eval(), random.Random(1)
    decoder, rows = engine(model), [(ids, draw.randrange(1, 25)) for ids in prompts(0, 33)]
    heard = []
    for ids, num in rows:
        decoder.submit(asked(ids, num, adapter="default", num_top=draw.randrange(3)), listener := Heard())
        heard.append(listener)
        for _ in range(draw.randrange(3)):
            decoder.step()
    decoder.run_until_idle()
    assert [listener.ids for listener in heard] == [generated(model, ids, num) for ids, num in rows]
    assert len({tuple(listener.ids[:4]) for listener in heard}) > 10

"""A server with real models behind it: a tiny base and two adapters, and the same models asked as evaluation asks them."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from openai import OpenAI
from peft import PeftModel

from luthier.core.chat import Conversation, Message
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.adapt import check_provenance
from luthier.model.decode import Decoder
from luthier.model.generate import LocalCompleter
from luthier.recipe.schema import Model
from luthier.serve.adapters import Adapters
from luthier.serve.listen import HERE, Listening
from luthier.serve.served import Served
from luthier.serve.site import Limits, Site
from tests.data.families import family
from tests.model.zoo import adapted
from tests.train.workshop import tiny_model

TOKEN = "a-token-of-the-tests"
MODELS = {"tuned": "default", "v1.5": "other", "base": ""}
MAX_LENGTH = 200
ROOMY = Limits()


def models() -> PeftModel:
    """A base whose answers are long and of all kinds of bytes, with two adapters that change them."""
    tokenizer = family("chatml")
    peft = adapted(tiny_model(vocabulary=len(tokenizer.pretrained)))
    peft.add_adapter("other", copy.deepcopy(peft.peft_config["default"]))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        for name, weight in peft.named_parameters():
            if ".other." in name:
                weight.normal_(std=0.1)
    return peft.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A server that is open, and what is behind it."""

    url: str
    site: Site
    tokenizer: ChatTokenizer
    twin: PeftModel
    """The same models, that nobody serves."""

    def client(self) -> OpenAI:
        """OpenAI's own, which tries nothing twice."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=TOKEN, max_retries=0)

    def plain(self, token: str = TOKEN) -> httpx.Client:
        """One that says what it is told to."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {token}"}, timeout=60)

    def evaluated(self, model: str, questions: Sequence[str], max_new_tokens: int) -> list[str]:
        """What evaluation hears from the same model."""
        conversations = [Conversation(messages=(Message(role="user", content=question),)) for question in questions]
        if adapter := MODELS[model]:
            self.twin.set_adapter(adapter)
        completer = LocalCompleter(self.twin if adapter else tiny_model(vocabulary=len(self.tokenizer.pretrained)), self.tokenizer)
        return [each.text for each in completer.complete(conversations, max_new_tokens=max_new_tokens)]

    def metric(self, line: str) -> float:
        """A number of /metrics."""
        with self.plain() as plain:
            lines = plain.get("/metrics").text.splitlines()
        return next((float(each.rpartition(" ")[2]) for each in lines if each.startswith(line + " ")), 0.0)


@contextmanager
def place(limits: Limits = ROOMY, adapters_from: Path | None = None) -> Iterator[Place]:
    """A server in this process, on a port of its own, that may be given adapters of a folder."""
    peft, tokenizer = models(), family("chatml")
    twin = copy.deepcopy(peft)
    listening, site = Listening(HERE, 0), Site(TOKEN, limits)
    engine = Decoder(peft, slots=8, max_length=MAX_LENGTH, cache_tokens=8 * MAX_LENGTH, chunk=64).start()
    adapters = Adapters(engine=engine, below=adapters_from.resolve(), check=compared(tokenizer)) if adapters_from else "fixed"
    site.served = Served(engine=engine, tokenizer=tokenizer, models=MODELS, adapters=adapters)
    try:
        with listening.answering(site):
            yield Place(url=f"http://{HERE}:{listening.port}", site=site, tokenizer=tokenizer, twin=twin)
    finally:
        engine.close()


def compared(tokenizer: ChatTokenizer) -> Callable[[Path], None]:
    """What tells of an adapter that it was trained for another template."""
    return lambda folder: check_provenance(folder, Model(base="base"), tokenizer)


def saved(folder: Path, seed: int) -> Path:
    """An adapter over the same base that is none of those that are served."""
    peft = adapted(tiny_model(vocabulary=len(family("chatml").pretrained)))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, weight in peft.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    peft.save_pretrained(folder)
    return folder


def questions(number: int) -> list[str]:
    """Of unlike lengths."""
    draw = random.Random(5)
    words = ["the", "capital", "of", "Paris", "weather", "answer", "2 + 2", "größer", "日本"]
    return [" ".join(draw.choices(words, k=1 + place % 12)) + f" {place}?" for place in range(number)]


def user(text: str) -> list[dict[str, str]]:
    """A dialogue of one question."""
    return [{"role": "user", "content": text}]

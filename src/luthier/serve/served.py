"""What a server answers with: an engine, its tokenizer, and the names that models are asked by."""

import inspect
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from luthier.core.chat import Conversation
from luthier.core.generation import Asked, Engine, Sampling
from luthier.data.fields import BadRowError, Cell
from luthier.data.tokenizer import ChatTokenizer, TemplateRefused
from luthier.data.turns import openai_turns
from luthier.serve.adapters import Adapters
from luthier.serve.asked import Templated, Writing
from luthier.serve.refused import Refused

RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {"messages"}
"""Its own parameters: a template sees none of them, and one of them is the template (trap 13)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Models over one base. What is asked is checked here, so that the engine sees only what it can answer."""

    engine: Engine
    tokenizer: ChatTokenizer
    models: Mapping[str, str]
    """The engine's name of the adapter, empty for none, by the name that a model is asked by; the first is the one to ask."""
    adapters: Adapters | Literal["fixed"] = "fixed"
    """Where others may come and go."""
    since: int = field(default_factory=lambda: int(time.time()))

    def adapter(self, model: str) -> str:
        """The model's adapter; raises Refused where there is no such model."""
        if model not in self.models:
            what = f"there is no model {model!r} here; there are: {', '.join(self.models)}"
            raise Refused(404, what, param="model", code="model_not_found")
        return self.models[model]

    def changeable(self) -> Adapters:
        """What may be loaded; raises Refused where nothing may."""
        if isinstance(self.adapters, str):
            what = "this server stays as it was started: start it with serving.options.adapters_from=FOLDER to load adapters of that folder"
            raise Refused(404, what, code="adapters_fixed")
        return self.adapters

    def dialogue_ids(self, body: Templated, *, with_tools: bool = True) -> list[int]:
        """A dialogue as the template writes it, in token ids; raises Refused where it cannot."""
        if wrong := sorted(body.chat_template_kwargs.keys() & RESERVED):
            raise Refused(400, f"chat_template_kwargs: {wrong[0]} is no variable of the template", param="chat_template_kwargs")
        whole = Cell(origin="the request", path="messages", value=body.messages)
        try:
            conversation = Conversation(messages=tuple(openai_turns(whole)), tools=tuple(body.tools) if with_tools else ())
            text = self.tokenizer.render(
                conversation, add_generation_prompt=body.add_generation_prompt, variables=body.chat_template_kwargs
            )
        except BadRowError as error:
            raise Refused(400, error.what, param="messages", code="invalid_parameter") from error
        except TemplateRefused as error:
            raise Refused(400, f"the chat template does not take this: {error.what}", param="messages") from error
        return self.ids(text, "messages")

    def prompt_ids(self, prompt: str | list[int]) -> list[int]:
        """A prompt in token ids; raises Refused for one without tokens, and for ids that the tokenizer does not have."""
        ids = self.ids(prompt, "prompt") if isinstance(prompt, str) else prompt
        if not ids:
            raise Refused(400, "the prompt has no tokens", param="prompt", code="invalid_parameter")
        if (largest := max(ids)) >= len(self.tokenizer.pretrained):
            raise Refused(400, f"token ids go to {len(self.tokenizer.pretrained) - 1:,}: {largest:,} is none", param="prompt")
        return ids

    def ids(self, text: str, param: str) -> list[int]:
        """Text in token ids; raises Refused for what is over length however it is cut: cutting 8 MB takes half a minute, and 1 GB."""
        if (least := -(-len(text) // self.tokenizer.longest_token)) > (limit := self.engine.max_length):
            what = f"this model takes {limit:,} tokens; asked are at least {least:,}: {len(text):,} characters"
            raise Refused(400, what, param=param, code="context_length_exceeded")
        return self.tokenizer.encode(text)

    def room(self, ids: Sequence[int], wanted: int | Literal["rest"], param: str) -> int:
        """Tokens that may be written after a prompt: as many as are wanted, or all that fit; raises Refused where they do not."""
        limit, rest = self.engine.max_length, self.engine.max_length - len(ids)
        if rest < 1 or (isinstance(wanted, int) and wanted > rest):
            answer = f" and {wanted:,} for the answer" if isinstance(wanted, int) else ""
            what = f"this model takes {limit:,} tokens; asked are {len(ids):,} of the prompt{answer}"
            raise Refused(400, what, param=param, code="context_length_exceeded")
        return wanted if isinstance(wanted, int) else rest

    def asked(self, body: Writing, ids: Sequence[int], max_new_tokens: int, **told: Any) -> list[Asked]:
        """What the engine is asked for a prompt: one for each choice, each with a seed of its own."""
        seed = secrets.randbits(62) if body.seed == "drawn" else int(body.seed)
        return [
            Asked(
                ids=tuple(ids),
                sampling=Sampling(
                    max_new_tokens=max_new_tokens, temperature=body.temperature, top_p=body.top_p, seed=(seed + choice) % 2**63
                ),
                stop_ids=frozenset((*self.tokenizer.stop_ids, *body.stop_token_ids)),
                adapter=self.adapter(body.model),
                **told,
            )
            for choice in range(body.n)
        ]

"""What may be asked: OpenAI's parameters that are heeded. Any other is refused by name, unless it is known to change no answer."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from luthier.serve.refused import Refused

MOST_TOP, MOST_CHOICES, MOST_STOPS, MOST_PROMPTS = 20, 32, 16, 64
MOST_STOP_CHARACTERS = 1000
MOST_STOP_IDS, MOST_NAME, MOST_PATH = 128, 200, 4000
# `fail_fast` below: a body has room for millions of items; a list of all that are wrong took gigabytes, and a minute of everybody's time.
HARMLESS = frozenset(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "priority",
    )
)
"""They change no answer, and are not read."""
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "top_k": (-1, 0),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_special_tokens": (False,),
    "continue_final_message": (False,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
}
"""Parameters that are not supported, and the values at which they ask for nothing: accepted so, refused otherwise."""


Stop = Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]


class Body(BaseModel):
    """A request's body. Types are as JSON has them: "1" is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StreamOptions(Body):
    """What a stream tells besides."""

    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False


class Writing(Body):
    """What chat and completions have in common."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Greedy where none is asked for, as evaluation is: what was judged is what answers (docs/notes/serve.md)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int | Literal["drawn"] = "drawn"
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST_STOP_IDS, fail_fast=True)] = []
    """Besides the tokenizer's own."""
    return_token_ids: bool = False
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] = []
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="after")
    def _choices_differ(self) -> Self:
        if self.n > 1 and not self.temperature:
            raise ValueError("n > 1 wants a temperature above 0: without one all choices are the same")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class Templated(Body):
    """A dialogue, and what its chat template is given."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)]
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] = []
    chat_template_kwargs: dict[str, Any] = {}
    add_generation_prompt: bool = True


class Chat(Writing, Templated):
    """`/v1/chat/completions`."""

    add_generation_prompt: Literal[True] = True
    tool_choice: Literal["auto", "none"] = "auto"
    max_tokens: Annotated[int, Field(ge=1)] | Literal["rest"] = "rest"
    max_completion_tokens: Annotated[int, Field(ge=1)] | Literal["rest"] = "rest"
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] = 0

    @model_validator(mode="after")
    def _is_told(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs wants logprobs: true")
        return self


Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
SEVERAL = Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)


class Completions(Writing):
    """`/v1/completions`. A prompt is text or token ids; text is encoded as it stands, and nothing is put before it."""

    prompt: str | Ids | Annotated[list[str], SEVERAL] | Annotated[list[Ids], SEVERAL]
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | Literal["none"] = "none"
    prompt_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | Literal["none"] = "none"

    @model_validator(mode="after")
    def _is_told_at_once(self) -> Self:
        if self.stream and self.prompt_logprobs != "none":
            raise ValueError("prompt_logprobs are not told in a stream")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [token for token in self.prompt if isinstance(token, int)]
        return [ids] if ids else [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class TokenizeText(Body):
    """`/tokenize` of text."""

    model: str
    prompt: str


class TokenizeChat(Templated):
    """`/tokenize` of a dialogue, as the chat route renders it."""

    model: str


class UnloadAdapter(Body):
    """`/v1/unload_lora_adapter`, as vLLM has it."""

    lora_name: Annotated[str, Field(min_length=1, max_length=MOST_NAME)]


class LoadAdapter(UnloadAdapter):
    """`/v1/load_lora_adapter`, as vLLM has it."""

    lora_path: Annotated[str, Field(min_length=1, max_length=MOST_PATH)]
    load_inplace: bool = False
    """Whether it may take the place of another of that name."""


Kind = TypeVar("Kind", bound=Body)
OBJECT = TypeAdapter(dict[str, Any])


def parsed(text: bytes) -> dict[str, Any]:
    """A body's object, without its nulls, which ask for nothing; raises Refused where it is none."""
    try:
        found = OBJECT.validate_json(text)
    except ValidationError as error:
        raise Refused(400, f"the body is no JSON object: {error.errors()[0]['msg']}", code="invalid_json") from error
    return {name: value for name, value in found.items() if value is not None}


def read(kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    """The body as this kind; raises Refused, which names the first parameter that is wrong, unknown or not supported."""
    for name in given.keys() - kind.model_fields.keys() - HARMLESS:
        if name not in NEUTRAL:
            near = difflib.get_close_matches(name, kind.model_fields, n=1)
            did_you = f"; did you mean {near[0]}?" if near else ""
            raise Refused(400, f"unknown parameter: {name}{did_you}", param=name, code="unknown_parameter")
        if given[name] not in NEUTRAL[name]:
            raise Refused(400, f"{name} is not supported, and would change the answer", param=name, code="unsupported_parameter")
    try:
        return kind.model_validate({name: value for name, value in given.items() if name in kind.model_fields})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = str(first["loc"][0]) if first["loc"] else ""
        wrong = {each["msg"]: None for each in error.errors() if not first["loc"] or each["loc"][0] == param}
        what = ", or ".join(wrong).replace("Value error, ", "")  # of a union, what each of its members wants
        raise Refused(400, f"{param}: {what}" if param else what, param=param, code="invalid_parameter") from error

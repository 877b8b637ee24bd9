"""The addresses of `luthier serve`, over plain ASGI: nothing is answered without the token, and no route can forget it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from luthier.core.asgi import Receive, Scope, Send, is_bearer
from luthier.core.generation import Asked
from luthier.serve.adapters import Adapters
from luthier.serve.answers import Answers
from luthier.serve.asked import (
    Chat,
    Completions,
    LoadAdapter,
    TokenizeChat,
    TokenizeText,
    UnloadAdapter,
    Writing,
    parsed,
    read,
)
from luthier.serve.counts import Counts
from luthier.serve.exchange import LEFT, Exchange, Left
from luthier.serve.refused import Refused
from luthier.serve.served import Served
from luthier.serve.text import Piece
from luthier.serve.told import ChatForm, TextForm, Top, Usage

PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"
PLAIN = b"text/plain; charset=utf-8"
MODELS = "/v1/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is refused beyond."""

    answers: int = 256
    """That are written or wait for it; a request for more is told to come back."""
    seconds: float = 600.0
    """For a request, from its first byte to its last."""
    body_bytes: int = 8 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request as the engine is asked it."""

    body: Writing
    asked: Sequence[Asked]
    form: ChatForm | TextForm
    num_prompt_tokens: int


class Site:
    """An ASGI application; until it is given something that is `served`, it says that it loads."""

    def __init__(self, token: str, limits: Limits) -> None:
        self.token, self.limits, self.counts = token, limits, Counts()
        self.served: Served | Literal["loading"] = "loading"
        self._gets: dict[str, Callable[[Exchange], Awaitable[None]]] = {
            "/health": self._health,
            "/metrics": self._metrics,
            MODELS: self._models,
        }
        self._posts: dict[str, Callable[[Exchange, dict[str, Any]], Awaitable[None]]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
            "/tokenize": self._tokenize,
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
        }
        self._changing = asyncio.Lock()

    @property
    def paths(self) -> tuple[str, ...]:
        """All addresses."""
        return (*self._gets, *self._posts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        except Refused as refused:
            await exchange.refuse(refused)
        except Left:
            exchange.status = LEFT
        except Exception:
            await exchange.refuse(Refused(500, "this is a fault of Luthier; the server's log has more"))
            raise
        finally:
            known = exchange.path if exchange.path in self.paths else MODELS if exchange.path.startswith(MODELS) else "other"
            self.counts.requests[known, exchange.status] += 1

    async def _answer(self, exchange: Exchange) -> None:
        if not is_bearer(exchange.headers, self.token):
            what = "the token is missing or wrong: luthier serve has printed it; OpenAI's clients take it as api_key"
            raise Refused(401, what, code="invalid_api_key")
        if exchange.path in self._posts:
            _allow(exchange, "POST")
            await self._in_time(exchange, self._posts[exchange.path])
        elif exchange.path in self._gets:
            _allow(exchange, "GET")
            await self._gets[exchange.path](exchange)
        elif exchange.path.startswith(MODELS + "/"):
            _allow(exchange, "GET")
            await exchange.json(self._model(exchange.path.removeprefix(MODELS + "/")))
        else:
            raise Refused(404, f"nothing is here; there are: {', '.join(self.paths)}", code="unknown_url")

    async def _in_time(self, exchange: Exchange, answer: Callable[[Exchange, dict[str, Any]], Awaitable[None]]) -> None:
        """Read the body and answer, as long as the client stays and the time allows."""

        async def answered() -> None:
            await answer(exchange, given)

        try:
            async with asyncio.timeout(self.limits.seconds):
                given = parsed(await exchange.body(self.limits.body_bytes))
                await exchange.unless_left(answered())
        except TimeoutError as error:
            if not exchange.whole:
                raise Refused(408, f"the body did not come within {self.limits.seconds:g} s", code="timeout") from error
            raise Refused(504, f"there was no whole answer within {self.limits.seconds:g} s", code="timeout") from error

    async def _health(self, exchange: Exchange) -> None:
        self._ready()
        await exchange.json({"status": "ok"})

    async def _metrics(self, exchange: Exchange) -> None:
        models = () if isinstance(self.served, str) else tuple(self.served.models)
        await exchange.answer(self.counts.text(models), PROMETHEUS)

    async def _models(self, exchange: Exchange) -> None:
        await exchange.json({"object": "list", "data": [self._model(name) for name in self._ready().models]})

    def _model(self, name: str) -> dict[str, Any]:
        served = self._ready()
        served.adapter(name)
        about = {"id": name, "object": "model", "created": served.since, "owned_by": "luthier"}
        return {**about, "max_model_len": served.engine.max_length}

    async def _tokenize(self, exchange: Exchange, given: dict[str, Any]) -> None:
        served = self._ready()
        if "messages" in given:
            chat = read(TokenizeChat, given)
            served.adapter(chat.model)
            ids = await asyncio.to_thread(served.dialogue_ids, chat)
        else:
            text = read(TokenizeText, given)
            served.adapter(text.model)
            ids = await asyncio.to_thread(served.ids, text.prompt, "prompt")
        await exchange.json({"tokens": ids, "count": len(ids), "max_model_len": served.engine.max_length})

    async def _chat(self, exchange: Exchange, given: dict[str, Any]) -> None:
        served, body = self._ready(), read(Chat, given)
        served.adapter(body.model)
        ids = await asyncio.to_thread(served.dialogue_ids, body, with_tools=body.tool_choice == "auto")
        wanted = body.max_tokens if body.max_completion_tokens == "rest" else body.max_completion_tokens
        room = served.room(ids, wanted, "messages")
        asked = served.asked(body, ids, room, num_top=body.top_logprobs)
        num_top: Top = body.top_logprobs if body.logprobs else "none"
        form = ChatForm(model=body.model, tokenizer=served.tokenizer, num_top=num_top, prompts=_told(body, asked))
        await self._write(exchange, Job(body=body, asked=asked, form=form, num_prompt_tokens=len(ids)))

    async def _completions(self, exchange: Exchange, given: dict[str, Any]) -> None:
        served, body = self._ready(), read(Completions, given)
        served.adapter(body.model)
        prompts = await asyncio.to_thread(lambda: [served.prompt_ids(prompt) for prompt in body.prompts])
        num_top = max(number for number in (body.logprobs, body.prompt_logprobs, 0) if not isinstance(number, str))
        asked = [
            one
            for ids in prompts
            for one in served.asked(
                body, ids, served.room(ids, body.max_tokens, "prompt"), num_top=num_top, prompt_told=body.prompt_logprobs != "none"
            )
        ]
        form = TextForm(
            model=body.model,
            tokenizer=served.tokenizer,
            num_top=body.logprobs,
            num_prompt_top=body.prompt_logprobs,
            prompts=_told(body, asked),
        )
        await self._write(exchange, Job(body=body, asked=asked, form=form, num_prompt_tokens=sum(map(len, prompts))))

    async def _load(self, exchange: Exchange, given: dict[str, Any]) -> None:
        adapters, body = self._ready().changeable(), read(LoadAdapter, given)
        await asyncio.shield(self._put_on(adapters, body))  # which who leaves does not stop half way
        await exchange.answer(f"Success: LoRA adapter '{body.lora_name}' added successfully.", PLAIN)

    async def _put_on(self, adapters: Adapters, body: LoadAdapter) -> None:
        async with self._changing:
            served, model = self._ready(), body.lora_name
            if before := model in served.models:
                adapters.refuse_kept(model, served.models[model])
            if before and not body.load_inplace:
                what = f"there is an adapter {model!r} already: unload it, or ask for load_inplace"
                raise Refused(400, what, param="lora_name", code="model_exists")
            loaded = await asyncio.to_thread(adapters.load, body.lora_path)
            self.served = replace(served, models={**served.models, model: loaded})
            if before:
                await asyncio.to_thread(adapters.unload, served.models[model])

    async def _unload(self, exchange: Exchange, given: dict[str, Any]) -> None:
        adapters, body = self._ready().changeable(), read(UnloadAdapter, given)
        await asyncio.shield(self._take_off(adapters, body.lora_name))
        await exchange.answer(f"Success: LoRA adapter '{body.lora_name}' removed successfully.", PLAIN)

    async def _take_off(self, adapters: Adapters, model: str) -> None:
        async with self._changing:
            served = self._ready()
            adapters.refuse_kept(model, name := served.adapter(model))
            self.served = replace(served, models={other: served.models[other] for other in served.models if other != model})
            await asyncio.to_thread(adapters.unload, name)
            self.counts.forget(model)

    async def _write(self, exchange: Exchange, job: Job) -> None:
        """The answer, as it comes or whole, and what it took counted."""
        began = time.monotonic()
        with self._places(len(job.asked)), Answers(self._ready(), job.asked, job.body.stops) as answers:
            self.counts.prompt_tokens[job.body.model] += job.num_prompt_tokens
            try:
                await (_stream if job.body.stream else _whole)(exchange, job, answers, self._first_after(began))
            finally:
                self.counts.completion_tokens[job.body.model] += answers.num_tokens
            self.counts.answer_seconds.add(time.monotonic() - began)

    def _first_after(self, began: float) -> Callable[[], None]:
        return lambda: self.counts.first_token_seconds.add(time.monotonic() - began)

    @contextmanager
    def _places(self, number: int) -> Iterator[None]:
        """So many more answers are open; raises Refused where that is more than may be."""
        if number > self.limits.answers:
            raise Refused(400, f"{number:,} answers are asked at once; {self.limits.answers:,} may be", code="too_many_answers")
        if self.counts.answers_open + number > self.limits.answers:
            what = f"{self.counts.answers_open} of {self.limits.answers} answers are open already: there is no place for {number} more"
            raise Refused(429, what, code="queue_full", retry_seconds=1)
        self.counts.answers_open += number
        try:
            yield
        finally:
            self.counts.answers_open -= number

    def _ready(self) -> Served:
        if isinstance(self.served, str):
            raise Refused(503, "the model is still being loaded", code="not_ready", retry_seconds=2)
        if self.served.engine.has_ended:
            raise Refused(500, "the engine has ended; the server's log has more", code="engine_failed")
        return self.served


def _allow(exchange: Exchange, method: str) -> None:
    if exchange.method != method:
        raise Refused(405, f"{exchange.path} takes {method}", code="method_not_allowed")


async def _whole(exchange: Exchange, job: Job, answers: Answers, first: Callable[[], None]) -> None:
    told: list[list[Piece]] = [[] for _ in answers.choices]
    async for number, pieces in answers.pieces():
        if not any(told):
            first()
        told[number] += pieces
    choices = []
    for number, (pieces, choice) in enumerate(zip(told, answers.choices, strict=True)):
        found = job.form.choice(number, _joined(pieces))
        choices.append(found if isinstance(job.form, ChatForm) else {**found, **job.form.prompt(number, choice.prompt_told)})
    await exchange.json(job.form.whole(choices, Usage(prompt=job.num_prompt_tokens, completion=answers.num_tokens)))


async def _stream(exchange: Exchange, job: Job, answers: Answers, first: Callable[[], None]) -> None:
    begun: set[int] = set()
    async for number, pieces in answers.pieces():
        if not begun:
            first()
        for opening in job.form.openings(number) if number not in begun else ():
            await exchange.event(opening)
        begun.add(number)
        piece = _joined(pieces)
        if piece.text or piece.spoken or piece.end:
            await exchange.event(job.form.part(number, piece))
    if job.body.stream_options.include_usage:
        await exchange.event(job.form.usage(Usage(prompt=job.num_prompt_tokens, completion=answers.num_tokens)))
    await exchange.end_events()


def _told(body: Writing, asked: Sequence[Asked]) -> list[tuple[int, ...]]:
    """Each choice's prompt, where token ids are wanted."""
    return [one.ids for one in asked] if body.return_token_ids else []


def _joined(pieces: Sequence[Piece]) -> Piece:
    """All that was told of a choice since as one piece."""
    text, spoken = "".join(piece.text for piece in pieces), tuple(each for piece in pieces for each in piece.spoken)
    return Piece(text=text, spoken=spoken, end=pieces[-1].end)

"""Many clients at once, clients that leave, engines that fail, and limits: nothing is lost, and every place is given back."""

import copy
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from luthier.core.generation import Asked, Listener
from luthier.model.decode import Decoder
from luthier.serve.site import Limits
from tests.serve.workshop import MODELS, ROOMY, TOKEN, Place, place, questions, user

LONG: dict[str, Any] = {"model": "base", "messages": user("x"), "max_tokens": 180}


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for it, and fail where it does not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_32_clients_at_once_each_get_the_right_answer(server: Place) -> None:
    asked = [(question, list(MODELS)[number % 3]) for number, question in enumerate(questions(64))]
    wanted = {model: server.evaluated(model, [question for question, of in asked if of == model], 12) for model in MODELS}
    before = server.metric('luthier_requests_total{path="/v1/chat/completions",status="200"}')

    def answer(number: int) -> str:
        question, model = asked[number]
        with server.client() as client:
            if number % 2:
                return client.chat.completions.create(model=model, messages=user(question), max_tokens=12).choices[0].message.content or ""
            chunks = client.chat.completions.create(model=model, messages=user(question), max_tokens=12, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(32) as pool:
        told = list(pool.map(answer, range(64)))
    for model in MODELS:
        assert [text for text, (_, of) in zip(told, asked, strict=True) if of == model] == wanted[model]
    assert server.metric('luthier_requests_total{path="/v1/chat/completions",status="200"}') - before == 64
    assert server.metric("luthier_answers_open") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_frees_its_place(server: Place, stream: bool) -> None:
    left = 'luthier_requests_total{path="/v1/chat/completions",status="499"}'
    before, written = server.metric(left), server.metric('luthier_tokens_total{kind="completion",model="base"}')
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({**LONG, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(head.encode() + body)
            until(lambda: server.site.counts.answers_open > 0)
    until(lambda: server.site.counts.answers_open == 0)
    assert server.metric(left) == before + 5
    assert server.metric('luthier_tokens_total{kind="completion",model="base"}') - written < 5 * 180
    with server.client() as client:  # which would wait for them, were they still being written
        client.chat.completions.create(model="base", messages=user("x"), max_tokens=1)


def test_a_full_queue_says_when_to_come_again() -> None:
    with place(replace(ROOMY, answers=3)) as full, full.client() as client, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(lambda: client.chat.completions.create(**LONG)) for _ in range(3)]
        until(lambda: full.site.counts.answers_open == 3)
        with pytest.raises(openai.RateLimitError) as found:
            client.chat.completions.create(model="base", messages=user("x"), max_tokens=1)
        assert (found.value.code, found.value.response.headers["retry-after"]) == ("queue_full", "1")
        assert all((answer.result().usage.completion_tokens) > 0 for answer in waiting)  # type: ignore[union-attr]  # it is there
        client.chat.completions.create(model="base", messages=user("x"), max_tokens=1)
        with pytest.raises(openai.BadRequestError, match="4 answers are asked at once; 3 may be"):
            client.chat.completions.create(model="base", messages=user("x"), max_tokens=1, n=4, temperature=1)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_ended_and_says_so(stream: bool) -> None:
    with place(replace(ROOMY, seconds=0.1)) as hasty, hasty.plain() as plain:
        answer = plain.post("/v1/chat/completions", json={**LONG, "stream": stream})
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        told = json.loads(events[-2]) if stream and answer.status_code == 200 else answer.json()
        assert answer.status_code == (200 if len(events) > 1 else 504)
        assert told["error"]["code"] == "timeout" and "within 0.1 s" in told["error"]["message"]
        until(lambda: hasty.site.counts.answers_open == 0)
        assert hasty.metric('luthier_requests_total{path="/v1/chat/completions",status="504"}') == 1


def test_a_body_that_does_not_come_is_waited_for_no_longer_than_that() -> None:
    with place(Limits(seconds=0.2)) as hasty:
        host, port = hasty.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 50\r\n\r\n{{"
            raw.sendall(head.encode())
            assert raw.recv(100).startswith(b"HTTP/1.1 408 ")


class Stumbling(Decoder):
    """An engine that fails with one request."""

    def submit(self, asked: Asked, listener: Listener) -> Any:
        if asked.sampling.max_new_tokens == 13:
            listener.failed(MemoryError("no more"))
        return super().submit(asked, listener)


def test_an_engine_that_fails_with_a_request_is_told_and_goes_on(server: Place) -> None:
    whole = server.site.served
    assert not isinstance(whole, str)
    engine = Stumbling(copy.deepcopy(server.twin), slots=2, max_length=200).start()
    server.site.served = replace(whole, engine=engine)
    try:
        with server.client() as client:
            with pytest.raises(openai.InternalServerError, match="could not go on: no more") as found:
                client.chat.completions.create(model="base", messages=user("x"), max_tokens=13)
            assert found.value.code == "engine_failed"
            client.chat.completions.create(model="base", messages=user("x"), max_tokens=3)
        assert server.site.counts.answers_open == 0
    finally:
        server.site.served = whole
        engine.close()


def test_until_it_is_ready_it_says_so() -> None:
    with place() as early:
        served, early.site.served = early.site.served, "loading"
        with early.plain() as plain:
            for answer in (plain.get("/health"), plain.get("/v1/models"), plain.post("/v1/chat/completions", json=LONG)):
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
                assert int(answer.headers["retry-after"]) > 0
            assert plain.get("/metrics").status_code == 200
            early.site.served = served
            assert plain.get("/health").json() == {"status": "ok"}


def test_metrics_are_what_prometheus_reads(server: Place) -> None:
    with server.plain() as plain:
        plain.post("/v1/completions", json={"model": "tuned", "prompt": "x", "max_tokens": 3})
        answer = plain.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    named, kinds = set(), {}
    for line in answer.text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            kinds[name] = kind
        elif not line.startswith("#"):
            name, value = line.rpartition(" ")[::2]
            named.add(name.partition("{")[0])
            assert float(value) >= 0
    assert named == {
        name + suffix for name, kind in kinds.items() for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    assert server.metric('luthier_tokens_total{kind="completion",model="tuned"}') >= 3


def test_a_server_that_ends_leaves_no_client_waiting() -> None:
    with place() as short, ThreadPoolExecutor(4) as pool:

        def ask() -> str:
            try:
                with short.client() as client:
                    return client.chat.completions.create(**LONG).choices[0].finish_reason
            except (openai.APIError, httpx.HTTPError) as error:
                return type(error).__name__

        waiting = [pool.submit(ask) for _ in range(4)]
        until(lambda: short.site.counts.answers_open == 4)
    assert all(answer.result(timeout=20) for answer in waiting)

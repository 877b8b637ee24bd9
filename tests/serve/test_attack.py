"""What may bring a server down: bodies of a million wrong items, clients that do not read, hundreds that leave, an engine that ended."""

import asyncio
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from luthier.model.decode import Decoder
from luthier.serve.asked import Chat, Completions, read
from luthier.serve.refused import Refused
from tests.serve.test_clients import LONG, until
from tests.serve.workshop import MAX_LENGTH, ROOMY, TOKEN, Place, models, place, user

MANY = 300_000


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Chat, {"messages": [1] * MANY}),
        (Chat, {"messages": user("x"), "tools": [1] * MANY}),
        (Completions, {"prompt": [""] * MANY}),
        (Completions, {"prompt": [[""]] * MANY}),
        (Completions, {"prompt": [*[1] * MANY, ""]}),
        (Completions, {"prompt": [[1]] * MANY}),
    ],
)
def test_of_many_wrong_items_the_first_is_enough(kind: type[Any], given: dict[str, Any]) -> None:
    began = time.process_time()
    with pytest.raises(Refused):
        read(kind, {"model": "base", **given})
    assert time.process_time() - began < 1  # a list of all of them took 7 s, in which nobody else was answered, and 0.6 GB


def test_text_that_is_over_length_however_it_is_cut_is_never_cut(server: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the capital " * 500_000
    with server.plain() as plain:
        for path, body in (("/v1/completions", {"prompt": text}), ("/v1/chat/completions", {"messages": user(text)})):
            began = time.monotonic()
            answer = plain.post(path, json={"model": "base", **body})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
            assert f"takes {MAX_LENGTH} tokens" in answer.json()["error"]["message"] and "at least" in answer.json()["error"]["message"]
            assert time.monotonic() - began < 5  # 37 s, and 0.9 GB


def test_a_prompt_may_fill_all_but_one_place_and_no_more(server: Place) -> None:
    with server.plain() as plain:
        answers = [plain.post("/v1/completions", json={"model": "base", "prompt": [1] * number, "max_tokens": 1}) for number in (199, 200)]
    assert [answer.status_code for answer in answers] == [200, 400]
    assert answers[0].json()["usage"] == {"prompt_tokens": 199, "completion_tokens": 1, "total_tokens": MAX_LENGTH}


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45, 1e-300])
def test_the_smallest_temperatures_are_greedy(server: Place, temperature: float) -> None:
    with server.client() as client:
        asked: dict[str, Any] = {"model": "tuned", "messages": user("x"), "max_tokens": 12, "seed": 3}
        greedy, cold, nucleus = (
            client.chat.completions.create(**asked, **more).choices[0].message.content
            for more in ({}, {"temperature": temperature}, {"temperature": temperature, "top_p": 0.5})
        )
    assert greedy == cold == nucleus


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_does_not_read_loses_its_place_in_time(stream: bool) -> None:
    """What uvicorn does where a socket takes no more: it waits."""
    body = json.dumps({**LONG, "stream": stream}).encode()
    told: list[Any] = []

    async def receive(messages: list[dict[str, Any]] = [{"type": "http.request", "body": body}]) -> dict[str, Any]:  # noqa: B006
        return messages.pop() if messages else await asyncio.Event().wait()  # type: ignore[func-returns-value]

    async def send(message: Any) -> None:
        told.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    with place(replace(ROOMY, seconds=0.5)) as slow:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
        }
        asyncio.run(asyncio.wait_for(slow.site(scope, receive, send), timeout=10))
        assert slow.site.counts.answers_open == 0
    assert [message["type"] for message in told].count("http.response.start") == 1


def test_a_storm_of_clients_that_leave_takes_no_place_for_good() -> None:
    with place() as stormy:
        served, tickets = stormy.site.served, list[Any]()
        assert not isinstance(served, str)
        submit = served.engine.submit
        served.engine.submit = lambda *given: tickets.append(submit(*given)) or tickets[-1]  # type: ignore[method-assign, func-returns-value]
        host, port = stormy.url.removeprefix("http://").split(":")
        for round in range(3):
            sockets = [_asking(host, int(port), stream=bool(number % 2)) for number in range(100)]
            time.sleep(0.05 * round)
            for each in sockets:
                each.close()
        until(lambda: stormy.site.counts.answers_open == 0, seconds=60)
        assert tickets and all(ticket.row.over for ticket in tickets)  # none is written for nobody
        with stormy.client() as client:
            assert client.chat.completions.create(model="base", messages=user("x"), max_tokens=3).usage is not None
        assert stormy.metric('luthier_requests_total{path="/v1/chat/completions",status="499"}') > 0


def _asking(host: str, port: int, *, stream: bool) -> socket.socket:
    body = json.dumps({**LONG, "stream": stream}).encode()
    found = socket.create_connection((host, port), timeout=10)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    found.sendall(head.encode() + body)
    return found


def test_a_server_whose_engine_has_ended_is_not_healthy() -> None:
    with place() as broken, broken.plain() as plain:
        assert plain.get("/health").status_code == 200
        served = broken.site.served
        assert not isinstance(served, str)
        served.engine.close()
        for answer in (plain.get("/health"), plain.post("/v1/chat/completions", json=LONG)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")


def test_a_token_that_the_tokenizer_does_not_have_is_no_text_and_no_failure(server: Place) -> None:
    """A model's vocabulary is often padded beyond its tokenizer's."""
    served = server.site.served
    assert not isinstance(served, str)
    peft = models()
    peft.resize_token_embeddings(len(server.tokenizer.pretrained) + 8)
    with torch.no_grad():
        peft.get_output_embeddings().weight.zero_()
        peft.get_input_embeddings().weight[-1] = 100.0
    engine = Decoder(peft, slots=2, max_length=MAX_LENGTH).start()
    server.site.served = replace(served, engine=engine)
    try:
        with server.plain() as plain:
            body = {"model": "base", "prompt": "x", "max_tokens": 3, "logprobs": 20, "temperature": 2.0, "n": 8, "seed": 1}
            for stream in (False, True):
                assert plain.post("/v1/completions", json={**body, "stream": stream}).status_code == 200
            ids: Sequence[int] = [len(server.tokenizer.pretrained)]
            assert plain.post("/v1/completions", json={"model": "base", "prompt": ids}).status_code == 400
    finally:
        server.site.served = served
        engine.close()

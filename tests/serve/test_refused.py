"""What is not answered: the right status, OpenAI's error object, and a message that says what to change."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.serve.workshop import MAX_LENGTH, TOKEN, Place, user

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASKED: dict[str, Any] = {"model": "base", "messages": user("x"), "max_tokens": 2}


def error(server: Place, path: str, body: Any, status: int) -> dict[str, Any]:
    """The error object of an answer with this status."""
    with server.plain() as plain:
        answer = plain.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"} and found["type"] == "invalid_request_error"
    return found


def test_every_address_asks_for_the_token(server: Place) -> None:
    assert len(server.site.paths) == 8
    with httpx.Client(base_url=server.url) as nobody:
        assert [nobody.get(path).status_code for path in server.site.paths] == [401] * 8
    for token in ("another", TOKEN[:-1], TOKEN + "x"):
        with server.plain(token) as plain:
            for path in (*server.site.paths, "/v1/models/base", "/", "/docs", "/openapi.json"):
                for method in ("GET", "POST", "DELETE", "OPTIONS"):
                    answer = plain.request(method, path)
                    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
                assert plain.head(path).status_code == 401, path
    with pytest.raises(openai.AuthenticationError, match="luthier serve has printed it"):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-none", max_retries=0).models.list()


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": "base"', b"[]", b"null", b"\xff\xfe", b'{"a": "\\ud800"}', b"[" * 10_000, b'"x"'])
def test_what_is_no_json_object_is_refused(server: Place, body: bytes) -> None:
    assert error(server, CHAT, body, 400)["code"] == "invalid_json"


def test_an_unknown_model_is_refused_with_those_there_are(server: Place) -> None:
    with server.client() as client, pytest.raises(openai.NotFoundError, match=r"there are: tuned, v1\.5, base") as found:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
    assert (found.value.code, found.value.param) == ("model_not_found", "model")
    assert error(server, COMPLETIONS, {"model": "none", "prompt": "x"}, 404)["code"] == "model_not_found"
    assert error(server, "/tokenize", {"model": "none", "prompt": "x"}, 404)["code"] == "model_not_found"


def test_a_prompt_over_length_is_refused_with_both_lengths(server: Place) -> None:
    found = error(server, CHAT, {"model": "base", "messages": user("the capital " * 200)}, 400)
    assert found["code"] == "context_length_exceeded" and f"takes {MAX_LENGTH} tokens; asked are" in found["message"]
    found = error(server, CHAT, {**ASKED, "max_tokens": MAX_LENGTH - 2}, 400)
    assert f"and {MAX_LENGTH - 2} for the answer" in found["message"]
    found = error(server, COMPLETIONS, {"model": "base", "prompt": [[1], [1] * MAX_LENGTH], "max_tokens": 1}, 400)
    assert (found["code"], found["param"]) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"50256": -100}),
        ("response_format", {"type": "json_object"}),
        ("top_k", 5),
        ("min_p", 0.1),
        ("ignore_eos", True),
        ("tool_choice", "required"),
        ("guided_json", {}),
        ("temprature", 0.3),
        ("functions", [{}]),
        ("add_generation_prompt", False),
    ],
)
def test_what_would_change_the_answer_and_is_not_supported_is_refused_by_name(server: Place, name: str, value: Any) -> None:
    found = error(server, CHAT, {**ASKED, name: value}, 400)
    assert found["param"] == name and name in found["message"]


def test_a_name_that_is_misspelt_is_told_the_right_one(server: Place) -> None:
    assert "did you mean temperature?" in error(server, CHAT, {**ASKED, "temprature": 0.3}, 400)["message"]


def test_what_asks_for_nothing_and_what_changes_nothing_is_borne(server: Place) -> None:
    nothing = {"frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": None, "top_k": -1, "response_format": {"type": "text"}}
    with server.plain() as plain:
        answer = plain.post(CHAT, json={**ASKED, **nothing, "user": "me", "metadata": {"a": "b"}, "seed": None, "stop": None})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.5"),
        ("temperature", 2.5),
        ("temperature", True),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_completion_tokens", "many"),
        ("n", 0),
        ("n", 1000),
        ("stop", 5),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stream", "yes"),
        ("seed", 0.5),
        ("messages", []),
        ("messages", "hello"),
        ("messages", ["hello"]),
        ("messages", [{"role": "wizard", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("messages", [{"role": "user"}]),
        ("top_logprobs", 21),
        ("chat_template_kwargs", {"chat_template": "{{ 1 }}"}),
        ("chat_template_kwargs", {"tokenize": True}),
        ("model", 5),
    ],
)
def test_a_wrong_type_or_value_is_refused_by_name(server: Place, name: str, value: Any) -> None:
    found = error(server, CHAT, {**ASKED, name: value}, 400)
    assert found["param"] == name and name in found["message"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"n": 2}, "temperature above 0"),
        ({"top_logprobs": 2}, "logprobs: true"),
        ({"messages": None}, "messages"),
    ],
)
def test_what_does_not_go_together_is_refused(server: Place, body: dict[str, Any], told: str) -> None:
    assert told in error(server, CHAT, {**ASKED, **body}, 400)["message"]


@pytest.mark.parametrize("prompt", ["", [], [[]], [1, "x"], [10**6], [-1], {"a": 1}, [[1], "x"], 5])
def test_a_prompt_that_is_none_is_refused(server: Place, prompt: Any) -> None:
    assert error(server, COMPLETIONS, {"model": "base", "prompt": prompt}, 400)["param"] == "prompt"


def test_a_template_that_does_not_take_a_dialogue_says_why(server: Place) -> None:
    template = server.tokenizer.pretrained.chat_template
    try:
        server.tokenizer.pretrained.chat_template = "{{ raise_exception('turns must alternate') }}"
        assert "turns must alternate" in error(server, CHAT, ASKED, 400)["message"]
    finally:
        server.tokenizer.pretrained.chat_template = template


def test_other_addresses_and_methods_are_refused(server: Place) -> None:
    with server.plain() as plain:
        answers = [plain.get("/v1/embeddings"), plain.get(CHAT), plain.post("/health"), plain.get("/v1/models/none")]
    assert [answer.status_code for answer in answers] == [404, 405, 405, 404]
    assert "/v1/chat/completions" in answers[0].json()["error"]["message"]


def megabytes(number: int) -> Iterator[bytes]:
    yield b'{"model": "base", "prompt": "'
    for _ in range(number):
        yield b"x" * 2**20
    yield b'"}'


def test_a_body_of_100_megabytes_is_refused_and_never_kept(server: Place) -> None:
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    with server.plain() as plain:
        answer = plain.post(COMPLETIONS, content=megabytes(100))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert plain.get("/health").status_code == 200
    assert process.memory_info().rss - before < 40 * 2**20


def test_a_body_that_says_it_is_too_large_is_not_waited_for(server: Place) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {10**8}\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")

"""The client that `verify --url` asks with: of Luthier's own server, which has vLLM's words for it, and of others."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from luthier.core.chat import Conversation, Message
from luthier.core.errors import ModelError, RunError, UsageError
from luthier.data.store import TokenRow
from luthier.export.verify import LocalSpeaker
from luthier.serve.client import Remote
from tests.serve.workshop import TOKEN, Place
from tests.train.workshop import FLOAT32

HELLO = Conversation(messages=(Message(role="user", content="Hello, größer?"),))


def some_rows() -> list[TokenRow]:
    random = np.random.default_rng(3)
    rows = []
    for length in (9, 30, 17):
        supervised = np.zeros(length, np.bool_)
        supervised[length // 2 : length - 2] = True  # tokens behind the last of them are not asked for
        rows.append(TokenRow(ids=random.integers(3, 60, length).astype(np.int32), supervised=supervised))
    return rows


@contextmanager
def answers(code: int, body: Any, **headers: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that says one thing to everybody, and what it heard."""
    heard: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            heard.append(dict(self.headers))
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        do_GET = do_POST

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()
        server.server_close()


def remote(url: str, token: str = TOKEN, model: str = "tuned") -> Remote:
    return Remote.at(url, model, token)


@pytest.mark.parametrize("model", ["tuned", "v1.5", "base"])
def test_luthiers_own_server_tells_what_its_model_holds_of_given_tokens(server: Place, model: str) -> None:
    told = remote(f"{server.url}/v1", model=model).log_probabilities(some_rows())
    twin = LocalSpeaker(model=server.twin, precision=FLOAT32)
    if model == "base":
        with server.twin.disable_adapter():
            own = twin.log_probabilities(some_rows())
    else:
        server.twin.set_adapter("default" if model == "tuned" else "other")
        own = twin.log_probabilities(some_rows())
        server.twin.set_adapter("default")
    for one, other in zip(told, own, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_it_makes_the_same_tokens_of_a_prompt(server: Place) -> None:
    assert remote(server.url).prompt_ids(HELLO) == server.tokenizer.prompt_ids(HELLO)


def test_a_model_that_is_not_there_is_told_with_those_that_are(server: Place) -> None:
    remote(server.url).refuse_unknown()
    with pytest.raises(ModelError, match="no model 'tunde'") as raised:
        remote(server.url, model="tunde").refuse_unknown()
    assert "tuned" in raised.value.change


def test_a_token_is_asked_for_and_named_in_no_error(server: Place) -> None:
    with pytest.raises(RunError, match="wants a token") as raised:
        remote(server.url, token="").wire.models()
    assert "--token-env" in raised.value.change
    with pytest.raises(RunError, match="wants another token") as raised:
        remote(server.url, token="wrong-secret-1").wire.models()
    assert "wrong-secret-1" not in str(raised.value) and "wrong-secret-1" not in repr(remote(server.url, token="wrong-secret-1"))


def test_a_server_without_tokenize_is_told() -> None:
    with answers(404, {"detail": "Not Found"}) as (url, _), pytest.raises(RunError, match="has no /tokenize") as raised:
        remote(url).prompt_ids(HELLO)
    assert "vLLM" in raised.value.change


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"text": "a"}]},
        {"choices": [{"prompt_logprobs": None}]},
        {"choices": []},
        {"choices": [{"prompt_logprobs": [None, {"1": {"logprob": -1.0}}]}]},
        [],
    ],
)
def test_a_server_that_ignores_prompt_logprobs_or_answers_otherwise_is_told(body: Any) -> None:
    with answers(200, body) as (url, _), pytest.raises(RunError, match="answer does not tell"):
        remote(url).log_probabilities(some_rows())


@pytest.mark.parametrize(("code", "body"), [(500, b"oh"), (200, b"<html>"), (200, b"\xff")])
def test_what_is_no_answer_is_an_error_of_the_server(code: int, body: bytes) -> None:
    with answers(code, body) as (url, _), pytest.raises(RunError):
        remote(url).wire.models()


def test_no_redirection_is_given_the_token() -> None:
    with answers(200, {"data": []}) as (other, heard), answers(307, {}, Location=f"{other}/v1/models") as (url, asked):
        with pytest.raises(RunError, match="answers 307"):
            remote(url).wire.models()
        assert asked[0]["Authorization"] == f"Bearer {TOKEN}" and heard == []


def test_nobody_there_is_told() -> None:
    with pytest.raises(RunError, match="no answer from the server"):
        remote("http://127.0.0.1:9").wire.models()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:8000", "ftp://host", "http://", "http://user:word@host"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        Remote.at(url, "m", "")

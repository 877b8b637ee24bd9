"""A server as a Completer: Luthier's own answers what evaluation hears from the same model; strangers are borne, or named."""

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.chat import Completion, Conversation, Message
from luthier.core.errors import ModelError, RunError
from luthier.serve.asking import AT_ONCE
from luthier.serve.completer import RemoteCompleter
from luthier.serve.wire import Unanswered, Wire
from tests.data.families import family
from tests.serve.spoken_to import Json, Reply, delta, stranger, whole
from tests.serve.workshop import TOKEN, Place, questions


def ask(*questions: str) -> list[Conversation]:
    return [Conversation(messages=(Message(role="user", content=question),)) for question in questions]


def completer(url: str, model: str = "m", token: str = TOKEN) -> RemoteCompleter:
    found = RemoteCompleter.at(Wire.to(url, token), model, family("chatml").spoken)
    found.waits = (0.0, 0.0, 0.0)
    return found


def answer_of(rule: Callable[[Json], Reply]) -> Completion:
    with stranger(rule) as there:
        (found,) = completer(there.url).complete(ask("1+1"), max_new_tokens=8)
    return found


@pytest.mark.parametrize("model", ["tuned", "base"])
def test_luthiers_own_server_answers_what_evaluation_hears_from_the_same_model(server: Place, model: str) -> None:
    asked = questions(24)
    found = completer(server.url, model).complete(ask(*asked), max_new_tokens=12)
    assert [each.text for each in found] == server.evaluated(model, asked, 12)
    for each, question in zip(found, ask(*asked), strict=True):
        assert each.num_prompt_tokens == len(server.tokenizer.prompt_ids(question))
        assert 0 < each.first_token_seconds <= each.seconds
    cut = [each for each in found if not each.stopped]
    assert cut and all(each.num_tokens == 12 for each in cut)


def test_of_several_models_one_has_to_be_named(server: Place) -> None:
    with pytest.raises(ModelError, match="3 models") as raised:
        completer(server.url, "")
    assert "tuned, v1.5, base" in raised.value.change
    with stranger(lambda _: Reply(body=whole("yes"))) as there:
        assert completer(there.url, "").model == "m"


def test_what_is_asked_is_greedy_and_has_tools_and_calls_as_openai_writes_them() -> None:
    tools = ({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},)
    calls = ({"name": "add", "arguments": {"a": 1}},)
    turns = (
        Message(role="user", content="1+1"),
        Message(role="assistant", content="", tool_calls=calls),
        Message(role="tool", content="2", tool_call_id="call_0"),
    )
    with stranger(lambda _: Reply(body=whole("two words"))) as there:
        (found,) = completer(there.url).complete([Conversation(messages=turns, tools=tools)], max_new_tokens=8)
    (body,) = there.bodies
    assert (body["temperature"], body["max_tokens"], body["model"], body["tools"]) == (0, 8, "m", [dict(tools[0])])
    called = {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    assert body["messages"][1]["tool_calls"] == [called]
    assert there.headers[0]["Authorization"] == f"Bearer {TOKEN}"
    assert (found.text, found.num_tokens, found.num_prompt_tokens, found.stopped) == ("two words", 2, 5, True)
    assert math.isnan(found.first_token_seconds) and found.seconds > 0  # it did not stream


def test_a_stream_tells_when_its_first_token_came() -> None:
    def slowly(_: Json) -> Reply:
        usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
        return Reply(
            events=(delta(role="assistant", content=""), delta(content="a"), delta(content="b"), delta(end="length"), usage, b"[DONE]")
        )

    found = answer_of(slowly)
    assert (found.text, found.num_tokens, found.stopped) == ("ab", 2, False)
    assert 0 < found.first_token_seconds <= found.seconds


def test_tool_calls_that_a_server_tells_apart_are_the_text_that_the_template_would_write() -> None:
    call = {"index": 0, "id": "x", "type": "function", "function": {"name": "add", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"a": '}}, {"index": 0, "function": {"arguments": "1}"}}
    parts = [delta(tool_calls=[call]), *(delta(tool_calls=[each]) for each in more), delta(end="tool_calls")]
    found = answer_of(lambda _: Reply(events=tuple(parts)))
    at_once = answer_of(lambda _: Reply(body=whole("", tool_calls=[{**call, "function": {"name": "add", "arguments": '{"a": 1}'}}])))
    assert "add" in found.text and '"a": 1' in found.text and found.text == at_once.text


def test_a_server_that_does_not_stream_is_asked_for_whole_answers_from_then_on() -> None:
    def refusing(body: Json) -> Reply:
        return Reply(code=400, body={"error": "unknown field stream_options"}) if "stream" in body else Reply(body=whole("yes"))

    with stranger(refusing) as there:
        asking = completer(there.url)
        for _ in range(2):
            assert [each.text for each in asking.complete(ask("a"), max_new_tokens=4)] == ["yes"]
    assert ["stream" in body for body in there.bodies] == [True, False, False]


@pytest.mark.parametrize(
    "reply", [Reply(code=429, headers={"Retry-After": "0"}), Reply(code=503), Reply(events=(delta(content="a"),)), Reply(body=[])]
)
def test_what_may_pass_is_asked_again(reply: Reply) -> None:
    left = [reply, reply]
    assert answer_of(lambda _: left.pop() if left else Reply(body=whole("at last"))).text == "at last"


def test_it_waits_longer_each_time_and_as_long_as_the_server_says(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with stranger(lambda _: Reply(code=429, headers={"Retry-After": "7"})) as there, pytest.raises(Unanswered, match="answers 429"):
        RemoteCompleter(wire=Wire.to(there.url, ""), model="m", spoken=family("chatml").spoken).complete(ask("a"), max_new_tokens=4)
    assert waited == [7, 7, 7, 8, 16]


@pytest.mark.parametrize(("code", "said"), [(400, "the prompt is too long"), (404, "no such model")])
def test_what_will_not_pass_is_told_at_once_in_the_servers_words(code: int, said: str) -> None:
    echo = Reply(code=code, body={"error": f"{said}; you are {TOKEN}"})
    with stranger(lambda _: echo) as there, pytest.raises(RunError, match=said) as raised:
        completer(there.url).complete(ask("a"), max_new_tokens=4)
    assert len(there.bodies) == 1 and TOKEN not in str(raised.value)


@pytest.mark.parametrize("body", [{"choices": ["a"]}, {"choices": [{"message": "a"}]}, {"choices": [{"message": {"content": 1}}]}])
def test_what_is_not_openais_is_an_error_of_the_server(body: Any) -> None:
    with stranger(lambda _: Reply(body=body)) as there, pytest.raises(RunError, match="not as OpenAI's"):
        completer(there.url).complete(ask("a"), max_new_tokens=4)


def test_several_are_asked_at_once_but_no_more_than_the_bound_and_come_in_order() -> None:
    now, most, lock = [0], [0], threading.Lock()

    def slowly(body: Json) -> Reply:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return Reply(body=whole(body["messages"][0]["content"]))

    asked = [f"row {number}" for number in range(60)]
    with stranger(slowly) as there:
        found = completer(there.url).complete(ask(*asked), max_new_tokens=4)
    assert [each.text for each in found] == asked and 4 < most[0] <= AT_ONCE


def test_a_silent_server_is_given_up() -> None:
    def silent(_: Json) -> Reply:
        time.sleep(1.0)
        return Reply(body=whole("too late"))

    with stranger(silent) as there:
        asking = RemoteCompleter(wire=Wire(url=there.url, seconds=0.1), model="m", spoken=family("chatml").spoken, waits=(0.0,))
        with pytest.raises(Unanswered, match="timed out"):
            asking.complete(ask("a"), max_new_tokens=4)
        assert len(there.bodies) == 2


def test_nothing_asked_is_nothing_answered() -> None:
    with stranger(lambda _: Reply(body=whole("yes"))) as there:
        assert completer(there.url).complete([], max_new_tokens=4) == [] and there.bodies == []

"""Token ids beside text, and stops by token, in vLLM's form: what reinforcement learning asks of a server."""

import json
from typing import Any

import pytest

from tests.serve.workshop import Place, questions, user

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def told(server: Place, path: str, **body: Any) -> dict[str, Any]:
    with server.plain() as plain:
        answer = plain.post(path, json={"model": "tuned", **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def streamed(server: Place, path: str, **body: Any) -> list[dict[str, Any]]:
    with server.plain() as plain:
        lines = plain.post(path, json={"model": "tuned", **body, "stream": True}).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def prompt_of(server: Place, question: str) -> list[int]:
    found: list[int] = told(server, "/tokenize", messages=user(question))["tokens"]
    return found


def test_a_chat_tells_its_prompts_and_its_answers_ids(server: Place) -> None:
    (question,) = questions(1)
    asked: dict[str, Any] = {"messages": user(question), "max_tokens": 20, "return_token_ids": True, "logprobs": True}
    whole = told(server, CHAT, **asked)
    (choice,) = whole["choices"]
    assert whole["prompt_token_ids"] == prompt_of(server, question)
    assert server.tokenizer.pretrained.decode(choice["token_ids"], skip_special_tokens=True) == choice["message"]["content"]
    assert len(choice["token_ids"]) == len(choice["logprobs"]["content"]) == whole["usage"]["completion_tokens"]
    first, *parts = streamed(server, CHAT, **asked)
    assert first["prompt_token_ids"] == whole["prompt_token_ids"]
    assert [id for part in parts for id in part["choices"][0]["token_ids"]] == choice["token_ids"]
    assert not any("prompt_token_ids" in part for part in parts)


def test_each_choice_of_completions_tells_its_own_prompts_and_answers_ids(server: Place) -> None:
    prompts = [server.tokenizer.encode(text) for text in ("The capital of France", "Two and two")]
    asked: dict[str, Any] = {"prompt": prompts, "max_tokens": 8, "return_token_ids": True, "n": 2, "temperature": 1.0, "seed": 4}
    choices = told(server, COMPLETIONS, **asked, logprobs=0)["choices"]
    assert [choice["prompt_token_ids"] for choice in choices] == [prompts[0]] * 2 + [prompts[1]] * 2
    ids: dict[int, list[int]] = {}
    begins: dict[int, list[int]] = {}
    for part in streamed(server, COMPLETIONS, **asked):
        (choice,) = part["choices"]
        if choice["index"] not in ids:
            begins[choice["index"]] = choice["prompt_token_ids"]
        else:
            assert "prompt_token_ids" not in choice
        ids.setdefault(choice["index"], []).extend(choice["token_ids"])
    assert [ids[number] for number in range(4)] == [choice["token_ids"] for choice in choices]
    assert [begins[number] for number in range(4)] == [choice["prompt_token_ids"] for choice in choices]
    assert [choice["logprobs"]["tokens"] for choice in choices] == [
        [server.tokenizer.decode([id]) for id in ids[each]] for each in range(4)
    ]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_answer_ends_at_a_stop_token_which_is_told_and_has_no_text(server: Place, path: str) -> None:
    (question,) = questions(1)
    prompt: dict[str, Any] = {"messages": user(question)} if path == CHAT else {"prompt": prompt_of(server, question)}
    asked: dict[str, Any] = {**prompt, "max_tokens": 30, "return_token_ids": True, "logprobs": True if path == CHAT else 0}
    (free,) = told(server, path, **asked)["choices"]
    stop = next(id for place, id in enumerate(free["token_ids"]) if place > 4 and free["token_ids"].index(id) == place)
    cut = free["token_ids"][: free["token_ids"].index(stop) + 1]
    (choice,) = told(server, path, **asked, stop_token_ids=[stop, 10**9])["choices"]
    parts = [part["choices"][0] for part in streamed(server, path, **asked, stop_token_ids=[stop])]
    assert choice["token_ids"] == cut == [id for part in parts for id in part.get("token_ids", [])]
    assert choice["finish_reason"] == parts[-1]["finish_reason"] == "stop"
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    assert text == server.tokenizer.pretrained.decode(cut[:-1], skip_special_tokens=True)
    logprobs = [each["logprob"] for each in choice["logprobs"]["content"]] if path == CHAT else choice["logprobs"]["token_logprobs"]
    before = [each["logprob"] for each in free["logprobs"]["content"]] if path == CHAT else free["logprobs"]["token_logprobs"]
    assert logprobs == pytest.approx(before[: len(cut)], abs=1e-5)


def test_nothing_of_it_is_told_where_it_is_not_asked_for(server: Place) -> None:
    for path, prompt in ((CHAT, {"messages": user("x")}), (COMPLETIONS, {"prompt": "x"})):
        assert "token_ids" not in str(told(server, path, **prompt, max_tokens=3))
        assert "token_ids" not in str(streamed(server, path, **prompt, max_tokens=3))


@pytest.mark.parametrize(
    ("name", "value"), [("stop_token_ids", [-1]), ("stop_token_ids", 5), ("stop_token_ids", [1] * 129), ("return_token_ids", 1)]
)
def test_a_wrong_one_is_refused_by_name(server: Place, name: str, value: Any) -> None:
    with server.plain() as plain:
        answer = plain.post(COMPLETIONS, json={"model": "base", "prompt": "x", name: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)

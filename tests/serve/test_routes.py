"""What OpenAI's own client gets: evaluation's answers, streamed or whole, with log-probabilities, seeds, stop texts and usage."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from tests.serve.workshop import MAX_LENGTH, MODELS, Place, questions, user

QUESTION = "What is the capital of France?"


def text_of(chunks: Iterable[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("model", MODELS)
def test_an_answer_is_evaluations_whole_and_streamed(server: Place, model: str) -> None:
    (wanted,) = server.evaluated(model, [QUESTION], 24)
    asked: dict[str, Any] = {"model": model, "messages": user(QUESTION), "max_tokens": 24}
    with server.client() as client:
        whole = client.chat.completions.create(**asked)
        streamed = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert whole.choices[0].message.content == text_of(streamed) == wanted
    assert len(wanted) > 10
    assert whole.choices[0].finish_reason == streamed[-2].choices[0].finish_reason == "length"
    assert whole.usage == streamed[-1].usage and streamed[-1].choices == []
    assert streamed[0].choices[0].delta.role == "assistant" and {chunk.id for chunk in streamed} == {streamed[0].id}


def test_models_answer_differently_by_their_names(server: Place) -> None:
    with server.client() as client:
        assert [model.id for model in client.models.list()] == list(MODELS)
        assert client.models.retrieve("v1.5").model_dump()["max_model_len"] == MAX_LENGTH
        told = {
            model: client.chat.completions.create(model=model, messages=user(QUESTION), max_tokens=16).choices[0].message.content
            for model in MODELS
        }
    assert len(set(told.values())) == 3


def test_usage_counts_the_templates_prompt_and_what_was_written(server: Place) -> None:
    with server.client() as client, server.plain() as plain:
        answer = client.chat.completions.create(model="base", messages=user(QUESTION), max_tokens=7)
        told = plain.post("/tokenize", json={"model": "base", "messages": user(QUESTION)}).json()
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (told["count"], 7, told["count"] + 7)
    assert server.tokenizer.decode(told["tokens"]).endswith("<|im_start|>assistant\n") and told["max_model_len"] == MAX_LENGTH


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_is_cut_exactly_and_never_told(server: Place, stream: bool) -> None:
    (whole,) = server.evaluated("tuned", [QUESTION], 40)
    for start in range(2, len(whole) - 6, 5):
        stop = whole[start : start + 5]
        asked: dict[str, Any] = {"model": "tuned", "messages": user(QUESTION), "max_tokens": 40, "stop": ["never this", stop]}
        with server.client() as client:
            answer = client.chat.completions.create(**asked, stream=stream)
            if stream:
                chunks = list(answer)
                text, reason = text_of(chunks), chunks[-1].choices[0].finish_reason
            else:
                text, reason = answer.choices[0].message.content or "", answer.choices[0].finish_reason
        assert (text, reason) == (whole.partition(stop)[0], "stop")


def test_a_seed_gives_the_same_answer_again_and_choices_are_unlike_each_other(server: Place) -> None:
    asked: dict[str, Any] = {"model": "base", "messages": user(QUESTION), "max_tokens": 16, "temperature": 1.0, "n": 4}

    def told(**more: Any) -> list[str | None]:
        with server.client() as client:
            return [choice.message.content for choice in client.chat.completions.create(**asked, **more).choices]

    first = told(seed=11)
    assert first == told(seed=11) and len(set(first)) == 4
    assert told(seed=99) != first and told() != told()


def test_several_choices_stream_side_by_side(server: Place) -> None:
    asked: dict[str, Any] = {"model": "base", "messages": user(QUESTION), "max_tokens": 12, "temperature": 0.8, "n": 3, "seed": 1}
    texts = ["", "", ""]
    with server.client() as client:
        for chunk in client.chat.completions.create(**asked, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        whole = client.chat.completions.create(**asked)
    assert texts == [choice.message.content for choice in whole.choices]


@torch.no_grad()
def by_hand(server: Place, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T, V] of the adapter's model for the token after each."""
    server.twin.set_adapter("default")
    logits: torch.Tensor = server.twin(input_ids=torch.tensor([ids])).logits[0].double()
    return logits.log_softmax(-1)


def test_log_probabilities_are_the_models_own(server: Place) -> None:
    with server.client() as client, server.plain() as plain:
        prompt = plain.post("/tokenize", json={"model": "tuned", "messages": user(QUESTION)}).json()["tokens"]
        asked: dict[str, Any] = {"model": "tuned", "max_tokens": 8}
        chat = client.chat.completions.create(**asked, messages=user(QUESTION), logprobs=True, top_logprobs=3)
        streamed = client.chat.completions.create(**asked, messages=user(QUESTION), logprobs=True, top_logprobs=3, stream=True)
        text = client.completions.create(**asked, prompt=prompt, logprobs=3)
        assert chat.choices[0].logprobs is not None and chat.choices[0].logprobs.content is not None
        told = chat.choices[0].logprobs.content
        parts = [chunk.choices[0].logprobs.content or [] for chunk in streamed if chunk.choices[0].logprobs]
    ids = list(prompt)
    for one in told:
        next_V = by_hand(server, ids)[-1]
        best = next_V.topk(3)
        assert one.logprob == pytest.approx(best.values[0].item(), abs=1e-4)
        assert [each.logprob for each in one.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert one.token == server.tokenizer.decode([int(best.indices[0])])
        ids.append(int(best.indices[0]))
    in_parts = [each for part in parts for each in part]
    assert [each.token for each in in_parts] == [each.token for each in told]
    assert [each.logprob for each in in_parts] == pytest.approx([each.logprob for each in told], abs=1e-4)
    of_text = text.choices[0].logprobs
    assert of_text is not None and of_text.token_logprobs == pytest.approx([one.logprob for one in told])
    assert of_text.tokens == [one.token for one in told] and of_text.text_offset is not None and of_text.text_offset[0] == 0


def test_a_prompts_own_log_probabilities_come_in_vllms_form(server: Place) -> None:
    ids = server.tokenizer.encode("The capital of France is Paris.")
    with server.plain() as plain:
        body = {"model": "tuned", "prompt": [ids, ids[:4]], "max_tokens": 1, "prompt_logprobs": 2}
        choices = plain.post("/v1/completions", json=body).json()["choices"]
    assert [len(choice["prompt_logprobs"]) for choice in choices] == [len(ids), 4]
    for choice, prompt in zip(choices, (ids, ids[:4]), strict=True):
        told_TV = by_hand(server, prompt)
        assert choice["prompt_logprobs"][0] is None
        for place, ranked in enumerate(choice["prompt_logprobs"][1:]):
            one = ranked[str(prompt[place + 1])]
            assert one["logprob"] == pytest.approx(told_TV[place, prompt[place + 1]].item(), abs=1e-4)
            assert one["decoded_token"] == server.tokenizer.decode([prompt[place + 1]])
            first, second = sorted((each for each in ranked.values() if each["rank"]), key=lambda each: each["rank"])[:2]
            assert (first["rank"], second["rank"]) == (1, 2)
            assert first["logprob"] == pytest.approx(told_TV[place].max().item(), abs=1e-4) and math.isfinite(second["logprob"])


def test_completions_take_text_ids_and_several_of_each(server: Place) -> None:
    texts = ["The capital", "the weather is"]
    ids = [server.tokenizer.encode(text) for text in texts]
    with server.client() as client:

        def told(prompt: Any) -> list[str]:
            return [choice.text for choice in client.completions.create(model="base", prompt=prompt, max_tokens=10).choices]

        both = told(texts)
        assert told(ids) == both and told(texts[0]) == told(ids[0]) == both[:1] and len(set(both)) == 2
        streamed = ["", ""]
        for chunk in client.completions.create(model="base", prompt=texts, max_tokens=10, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == both
        assert len(client.completions.create(model="base", prompt="x").choices[0].text) > 0


def test_tools_and_variables_reach_the_template(server: Place) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}

    def rendered(**more: Any) -> str:
        with server.plain() as plain:
            answer = plain.post("/tokenize", json={"model": "base", "messages": user("x"), **more})
        assert answer.status_code == 200, answer.text
        return server.tokenizer.decode(answer.json()["tokens"])

    assert "assistant" not in rendered(add_generation_prompt=False)
    template = server.tokenizer.pretrained.chat_template
    try:
        server.tokenizer.pretrained.chat_template = "{{ tools | tojson if tools else '' }}{{ mood }}" + template
        assert "look_up" in rendered(tools=[tool]) and rendered(chat_template_kwargs={"mood": "gentle"}).startswith("gentle")
        with server.client() as client:
            counts = [
                client.chat.completions.create(
                    model="base", messages=user("x"), max_tokens=1, tools=[tool], tool_choice=choice
                ).usage.prompt_tokens  # type: ignore[union-attr]  # it is there
                for choice in ("auto", "none")
            ]
        assert counts[0] > counts[1]
    finally:
        server.tokenizer.pretrained.chat_template = template


def test_an_answer_without_a_limit_ends_where_the_model_does(server: Place) -> None:
    with server.client() as client:
        answer = client.chat.completions.create(model="base", messages=user(questions(3)[2]))
    assert answer.usage is not None and answer.usage.total_tokens <= MAX_LENGTH
    assert answer.choices[0].finish_reason == ("length" if answer.usage.total_tokens == MAX_LENGTH else "stop")

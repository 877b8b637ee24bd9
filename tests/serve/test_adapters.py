"""Adapters come and go while a server answers: by vLLM's routes, from one folder alone, and nobody else notices."""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from luthier.data.tokenizer import ChatTokenizer
from luthier.model.adapt import load_adapter
from luthier.model.decode import Decoder
from tests.model.test_decode import Heard, asked
from tests.serve.workshop import MAX_LENGTH, MODELS, Place, place, saved, user
from tests.train.workshop import tiny_model

LOAD, UNLOAD, COMPLETIONS = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"
IDS = list(range(5, 45))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that adapters may be loaded from; two lie in it."""
    folder = tmp_path_factory.mktemp("shelf")
    for seed, name in enumerate(("one", "two"), start=5):
        saved(folder / name, seed)
    return folder


@pytest.fixture
def open_one(shelf: Path) -> Iterator[Place]:
    with place(adapters_from=shelf) as found:
        yield found


def post(server: Place, path: str, **body: Any) -> httpx.Response:
    with server.plain() as plain:
        return plain.post(path, json=body)


def load(server: Place, name: str, path: Path | str, **more: Any) -> None:
    answer = post(server, LOAD, lora_name=name, lora_path=str(path), **more)
    assert (answer.status_code, answer.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")


def unload(server: Place, name: str) -> None:
    answer = post(server, UNLOAD, lora_name=name)
    assert (answer.status_code, answer.text) == (200, f"Success: LoRA adapter '{name}' removed successfully.")


def written(server: Place, model: str, number: int = 12) -> list[int]:
    answer = post(server, COMPLETIONS, model=model, prompt=IDS, max_tokens=number, return_token_ids=True)
    assert answer.status_code == 200, answer.text
    found: list[int] = answer.json()["choices"][0]["token_ids"]
    return found


def started_with(folder: Path, tokenizer: ChatTokenizer, number: int = 12) -> list[int]:
    """What an engine writes that had the adapter from the start."""
    model = load_adapter(tiny_model(vocabulary=len(tokenizer.pretrained)), folder)
    engine, heard = Decoder(model, max_length=MAX_LENGTH), Heard()
    engine.submit(asked(IDS, number, stop=tokenizer.stop_ids, adapter="default"), heard)
    while engine.step():
        pass
    return heard.ids


def models(server: Place) -> list[str]:
    with server.client() as client:
        return [model.id for model in client.models.list()]


def test_a_loaded_adapter_answers_as_a_server_that_was_started_with_it(open_one: Place, shelf: Path) -> None:
    before = [written(open_one, model) for model in MODELS]
    load(open_one, "policy", shelf / "one")
    load(open_one, "other policy/2.5", "two")  # below the folder, too
    assert models(open_one) == [*MODELS, "policy", "other policy/2.5"]
    assert written(open_one, "policy") == started_with(shelf / "one", open_one.tokenizer)
    assert written(open_one, "other policy/2.5") == started_with(shelf / "two", open_one.tokenizer)
    assert [written(open_one, model) for model in MODELS] == before
    assert len({tuple(each) for each in (*before, written(open_one, "policy"), written(open_one, "other policy/2.5"))}) == 5
    unload(open_one, "policy")
    assert models(open_one) == [*MODELS, "other policy/2.5"]
    assert post(open_one, COMPLETIONS, model="policy", prompt=IDS).status_code == 404
    assert post(open_one, UNLOAD, lora_name="policy").json()["error"]["code"] == "model_not_found"
    assert [written(open_one, model) for model in MODELS] == before


def test_a_name_that_is_taken_is_refused_unless_it_may_be_replaced_and_then_nothing_of_the_old_answers(
    open_one: Place, shelf: Path
) -> None:
    load(open_one, "policy", shelf / "one")
    first = written(open_one, "policy")
    refused = post(open_one, LOAD, lora_name="policy", lora_path=str(shelf / "two"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_exists") and "load_inplace" in refused.text
    assert written(open_one, "policy") == first
    load(open_one, "policy", shelf / "two", load_inplace=True)
    assert written(open_one, "policy") == started_with(shelf / "two", open_one.tokenizer) != first
    unload(open_one, "policy")
    load(open_one, "policy", shelf / "one")
    assert written(open_one, "policy") == first


@pytest.mark.parametrize("model", MODELS)
def test_what_the_server_was_started_with_stays(open_one: Place, shelf: Path, model: str) -> None:
    load_it = {"lora_path": str(shelf / "one"), "load_inplace": True}
    for path, body in ((LOAD, load_it), (UNLOAD, {})):
        answer = post(open_one, path, lora_name=model, **body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_kept")


def test_a_stream_that_runs_goes_on_as_if_nothing_were_loaded(open_one: Place, shelf: Path) -> None:
    asked_for: dict[str, Any] = {"messages": user("What is the capital of France?"), "max_tokens": 100, "temperature": 1.0, "seed": 3}
    with open_one.client() as client:
        expected = [client.chat.completions.create(model=model, **asked_for).choices[0].message.content for model in MODELS]
        streams = [client.chat.completions.create(model=model, stream=True, **asked_for) for model in MODELS]
        texts = [next(iter(stream)).choices[0].delta.content or "" for stream in streams]
        for number in range(6):
            load(open_one, f"policy-{number}", shelf / ("one", "two")[number % 2])
            written(open_one, f"policy-{number}", 2)
            if number:
                unload(open_one, f"policy-{number - 1}")
        texts = [
            text + "".join(chunk.choices[0].delta.content or "" for chunk in stream) for text, stream in zip(texts, streams, strict=True)
        ]
    assert texts == expected


def test_who_is_answered_by_an_adapter_that_goes_is_told(open_one: Place, shelf: Path) -> None:
    load(open_one, "policy", shelf / "one")
    told: list[Any] = []
    with open_one.client() as client:
        stream = client.completions.create(model="policy", prompt=IDS, max_tokens=150, stream=True)
        told.append(next(iter(stream)))
        whole = threading.Thread(target=lambda: told.append(post(open_one, COMPLETIONS, model="policy", prompt=IDS, max_tokens=150)))
        whole.start()
        while open_one.metric("luthier_answers_open") < 2:
            assert whole.is_alive()
        unload(open_one, "policy")
        with pytest.raises(openai.APIError, match="was unloaded before the answer was whole"):
            told += list(stream)
    whole.join()
    assert told[-1].status_code == 404 and told[-1].json()["error"]["code"] == "model_not_found"
    assert written(open_one, "base")


def link(place: Path, target: Path | str) -> Path:
    place.symlink_to(target)
    return place


@pytest.fixture
def outside(tmp_path: Path, shelf: Path) -> list[Path | str]:
    """Ways out of the folder."""
    stolen, inside = saved(tmp_path / "stolen", 9), shelf / "inside"
    inside.mkdir(exist_ok=True)
    (inside / "adapter_config.json").write_bytes((stolen / "adapter_config.json").read_bytes())
    for name, target in (("adapter_model.safetensors", stolen / "adapter_model.safetensors"),):
        (inside / name).unlink(missing_ok=True)
        link(inside / name, target)
    (shelf / "away").unlink(missing_ok=True)
    return [stolen, os.path.relpath(stolen, shelf), link(shelf / "away", stolen), "away", f"one/../../{stolen}", inside]


def test_paths_that_lead_out_are_refused(open_one: Place, outside: Sequence[Path | str]) -> None:
    for path in outside:
        answer = post(open_one, LOAD, lora_name="policy", lora_path=str(path))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path"), path
        assert "leads out of the folder" in answer.text, path
    assert models(open_one) == list(MODELS)


@pytest.mark.parametrize("path", ["three", "", ".", "one/adapter_model.safetensors", "a\0b", "x" * 3000, "loop", "pipe"])
def test_a_path_without_an_adapter_is_refused(open_one: Place, shelf: Path, path: str) -> None:
    if path == "loop" and not (shelf / path).is_symlink():
        link(shelf / path, shelf / path)
    if path == "pipe" and not (shelf / path).exists():
        (shelf / path).mkdir()
        (shelf / path / "adapter_config.json").write_bytes((shelf / "one" / "adapter_config.json").read_bytes())
        os.mkfifo(shelf / path / "adapter_model.safetensors")
    answer = post(open_one, LOAD, lora_name="policy", lora_path=path)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path")
    assert models(open_one) == list(MODELS) and written(open_one, "base")


def test_an_adapter_that_does_not_fit_is_refused_with_the_reason_and_leaves_nothing(open_one: Place, shelf: Path) -> None:
    before = [written(open_one, model) for model in MODELS]
    for name, file, content, told in (
        ("template", "provenance.json", json.dumps({"template_hash": "0" * 64}), "trained with chat template"),
        ("cut", "adapter_model.safetensors", "cut", "cannot be read"),
        ("config", "adapter_config.json", "{}", "peft_type"),
    ):
        (saved(shelf / name, 7) / file).write_text(content)
        answer = post(open_one, LOAD, lora_name="policy", lora_path=name)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "adapter_refused") and told in answer.text, name
    assert models(open_one) == list(MODELS) and [written(open_one, model) for model in MODELS] == before


@pytest.mark.parametrize("body", [{}, {"lora_name": "", "lora_path": "one"}, {"lora_name": "a", "lora_path": "one", "lora_nam": 1}])
def test_a_body_that_is_wrong_is_refused(open_one: Place, body: dict[str, Any]) -> None:
    assert post(open_one, LOAD, **body).status_code == 400 and models(open_one) == list(MODELS)


def test_a_server_that_was_not_started_for_it_says_what_to_do(server: Place, shelf: Path) -> None:
    for path in (LOAD, UNLOAD):
        answer = post(server, path, lora_name="policy", lora_path=str(shelf / "one"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapters_fixed")
        assert "serving.options.adapters_from=FOLDER" in answer.text
    assert models(server) == list(MODELS)


def test_nothing_is_loaded_without_the_token(open_one: Place, shelf: Path) -> None:
    with open_one.plain("another") as plain:
        for path in (LOAD, UNLOAD):
            assert plain.post(path, json={"lora_name": "policy", "lora_path": str(shelf / "one")}).status_code == 401
    assert models(open_one) == list(MODELS)


def test_what_was_counted_of_a_model_goes_with_it(open_one: Place, shelf: Path) -> None:
    load(open_one, "policy", shelf / "one")
    written(open_one, "policy", 3)
    counted = 'luthier_tokens_total{kind="completion",model="policy"}'
    assert open_one.metric(counted) == 3
    unload(open_one, "policy")
    assert open_one.metric(counted) == 0 and "policy" not in open_one.site.counts.completion_tokens

"""A policy on a server: what it draws is what the engine in this process draws, and a server that cannot serve one is refused in words."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import RunError, UsageError
from luthier.core.generation import Drawn
from luthier.model.adapt import load_adapter
from luthier.model.decode import Decoder
from luthier.serve.sampler import RemoteSampler
from luthier.serve.wire import Unanswered, Wire
from tests.data.families import family
from tests.model.test_decode import Heard, asked
from tests.serve.spoken_to import Json, Reply, stranger
from tests.serve.workshop import MAX_LENGTH, MODELS, TOKEN, Place, place, questions, saved, user
from tests.train.workshop import tiny_model

STOPS = family("chatml").stop_ids


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    for step in range(3):
        saved(folder / f"step-{step}", 20 + step)
    return folder


@pytest.fixture(scope="module")
def open_one(shelf: Path) -> Iterator[Place]:
    with place(adapters_from=shelf) as found:
        yield found


@pytest.fixture
def sampler(open_one: Place) -> RemoteSampler:
    return RemoteSampler.at(open_one.url, TOKEN, STOPS)


def prompts(number: int) -> list[list[int]]:
    return [family("chatml").encode(text) for text in questions(number)]


def drawn_here(folder: Path, ids: Sequence[Sequence[int]], seeds: Sequence[int], number: int, **sampling: float) -> list[Drawn]:
    """By an engine in this process."""
    engine = Decoder(load_adapter(tiny_model(vocabulary=len(family("chatml").pretrained)), folder), max_length=MAX_LENGTH)
    heard = [Heard() for _ in ids]
    for prompt, seed, listener in zip(ids, seeds, heard, strict=True):
        engine.submit(asked(prompt, number, stop=STOPS, adapter="default", seed=seed, **sampling), listener)
    while engine.step():
        pass
    return [
        Drawn(ids=tuple(each.ids), logprobs=tuple(token.logprob for token in each.tokens), stopped=each.tokens[-1].end == "stop")
        for each in heard
    ]


def assert_alike(found: Sequence[Drawn], expected: Sequence[Drawn]) -> None:
    assert [(each.ids, each.stopped) for each in found] == [(each.ids, each.stopped) for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.0}])
def test_what_is_drawn_is_what_the_engine_here_draws_with_the_same_seeds(
    sampler: RemoteSampler, shelf: Path, sampling: dict[str, float]
) -> None:
    ids, seeds = [prompt for prompt in prompts(20) for _ in range(4)], list(range(1000, 1080))
    for step in range(2):
        sampler.give(f"step-{step}", shelf / f"step-{step}")
        found = sampler.draw(ids, seeds, max_new_tokens=16, **sampling)  # type: ignore[arg-type]  # by their names
        assert_alike(found, drawn_here(shelf / f"step-{step}", ids, seeds, 16, **sampling))
        assert any(not each.stopped and len(each.ids) == 16 for each in found)


def test_the_stop_token_is_among_what_was_drawn(sampler: RemoteSampler, shelf: Path) -> None:
    sampler.give("step-0", shelf / "step-0")
    (free,) = sampler.draw(prompts(1), [5], max_new_tokens=16, temperature=1.0)
    stop = next(id for place, id in enumerate(free.ids) if place > 3 and free.ids.index(id) == place)
    sampler.stop_ids = (stop,)
    (found,) = sampler.draw(prompts(1), [5], max_new_tokens=16, temperature=1.0)
    length = free.ids.index(stop) + 1
    assert_alike([found], [Drawn(ids=free.ids[:length], logprobs=free.logprobs[:length], stopped=True)])


def test_no_nucleus_is_the_likeliest(sampler: RemoteSampler, shelf: Path) -> None:
    sampler.give("step-0", shelf / "step-0")
    greedy, none = (
        sampler.draw(prompts(2), [1, 2], max_new_tokens=8, **how) for how in ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.0})
    )
    assert_alike(none, greedy)


def test_each_step_has_its_own_name_and_the_one_before_is_unloaded(open_one: Place, sampler: RemoteSampler, shelf: Path) -> None:
    first = None
    for step in (0, 1, 2, 0):
        sampler.give(f"policy-{step}", shelf / f"step-{step}")
        assert [model for model in sampler.wire.models() if model not in MODELS and not model.startswith("step-")] == [f"policy-{step}"]
        found = sampler.draw(prompts(3), [1, 2, 3], max_new_tokens=8, temperature=1.0)
        first = first or found
    assert_alike(found, first or [])
    sampler.give("policy-0", shelf / "step-1")  # another under the same name
    assert sampler.draw(prompts(3), [1, 2, 3], max_new_tokens=8, temperature=1.0) != first
    again = RemoteSampler.at(open_one.url, TOKEN, STOPS)  # such as a run that was killed and goes on
    again.give("policy-0", shelf / "step-0")
    assert_alike(again.draw(prompts(3), [1, 2, 3], max_new_tokens=8, temperature=1.0), first or [])


def test_what_the_server_refuses_is_told_in_its_words_and_the_one_before_answers_on(
    open_one: Place, sampler: RemoteSampler, shelf: Path, tmp_path: Path
) -> None:
    sampler.give("policy", shelf / "step-0")
    with pytest.raises(RunError, match="leads out of the folder"):
        sampler.give("next", saved(tmp_path / "elsewhere", 1))
    assert sampler.draw(prompts(1), [1], max_new_tokens=2, temperature=1.0)
    with pytest.raises(RunError, match="this model takes 200 tokens"):
        sampler.draw([[1] * 300], [1], max_new_tokens=2, temperature=1.0)
    with open_one.client() as client:
        assert client.chat.completions.create(model="policy", messages=user("x"), max_tokens=2).choices  # type: ignore[arg-type]


def test_before_an_adapter_is_given_nothing_is_drawn(sampler: RemoteSampler) -> None:
    with pytest.raises(UsageError, match="no adapter yet"):
        sampler.draw(prompts(1), [1], max_new_tokens=2, temperature=1.0)


def test_a_server_that_takes_no_adapters_is_refused_with_what_to_do(server: Place) -> None:
    with pytest.raises(RunError, match="takes no adapters") as raised:
        RemoteSampler.at(server.url, TOKEN, STOPS)
    assert "adapters_from=FOLDER" in raised.value.change and "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in raised.value.change


def test_a_wrong_token_and_what_is_no_address_are_told(server: Place) -> None:
    with pytest.raises(Unanswered, match="wants another token"):
        RemoteSampler.at(server.url, "another", STOPS)
    with pytest.raises(UsageError, match="no address"):
        RemoteSampler.at("ftp://x", TOKEN, STOPS)


def choice(**more: Any) -> Json:
    told = {"token_ids": [7, 8], "logprobs": {"token_logprobs": [-0.5, -1.25]}, "finish_reason": "length"}
    return {"choices": [{name: value for name, value in {**told, **more}.items() if value != "absent"}]}


@pytest.mark.parametrize(
    "more",
    [{"token_ids": "absent"}, {"token_ids": None}, {"logprobs": None}, {"token_ids": [7]}, {"logprobs": {"token_logprobs": [None, 1]}}],
)
def test_a_server_that_tells_no_tokens_is_refused(more: Json) -> None:
    with stranger(lambda _: Reply(body=choice(**more))) as there, pytest.raises(RunError, match="tell") as raised:
        RemoteSampler.at(there.url, "", STOPS)
    assert "return_token_ids" in raised.value.change


def test_a_busy_server_and_an_answer_that_broke_off_are_asked_again() -> None:
    left = [Reply(code=429, headers={"Retry-After": "0"}), Reply(body=choice(finish_reason="abort")), Reply(code=503)]
    with stranger(lambda body: left.pop() if left and body.get("seed") == 3 else Reply(body=choice())) as there:
        sampler = RemoteSampler(wire=Wire.to(there.url, ""), stop_ids=(2,), waits=(0.0, 0.0, 0.0), given="policy")
        found = sampler.draw([[1], [2, 2]], [3, 4], max_new_tokens=2, temperature=0.5)
    assert found == [Drawn(ids=(7, 8), logprobs=(-0.5, -1.25), stopped=False)] * 2 and not left
    first = next(body for body in there.bodies if body["seed"] == 4)
    assert first == {
        "model": "policy",
        "prompt": [2, 2],
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 4,
        "logprobs": 0,
        "return_token_ids": True,
        "stop_token_ids": [2],
    }

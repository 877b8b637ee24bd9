"""The engine writes what the model alone would write, whoever shares the batch: greedy tokens against transformers' own generate."""

import copy
import gc
import itertools
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from luthier.core.compiled import Compiled
from luthier.core.errors import ModelError
from luthier.core.generation import Asked, Sampling, Token
from luthier.model import abreast, decode
from luthier.model.decode import Decoder
from luthier.model.onebyone import OneByOne
from luthier.model.slots import Slots
from luthier.model.ways import passes_of
from tests.model.zoo import FAMILIES, FOREIGN, MIXTURES, VOCABULARY, adapted, tiny

EVERY = sorted({**FAMILIES, **FOREIGN, **MIXTURES})


@dataclass
class Heard:
    """What a listener was told."""

    tokens: list[Token] = field(default_factory=list)
    prompts: list[tuple[Token, ...]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def prompt(self, tokens: tuple[Token, ...]) -> None:
        self.prompts.append(tokens)

    def token(self, token: Token) -> None:
        self.tokens.append(token)
        if token.end:
            self.over.set()

    def failed(self, error: Exception) -> None:
        self.errors.append(error)
        self.over.set()

    @property
    def ids(self) -> list[int]:
        assert self.errors == []
        return [token.id for token in self.tokens]


def asked(ids: Sequence[int], num: int = 12, *, stop: Sequence[int] = (), **given: Any) -> Asked:
    sampling = {name: given.pop(name) for name in ("temperature", "top_p", "seed") if name in given}
    return Asked(ids=tuple(ids), sampling=Sampling(max_new_tokens=num, **sampling), stop_ids=frozenset(stop), **given)


def engine(model: PreTrainedModel | PeftModel, **changed: Any) -> Decoder:
    return Decoder(model.eval(), **{"slots": 8, "max_length": 200, "cache_tokens": 2_000, "chunk": 64, **changed})


def finish(decoder: Decoder) -> None:
    """All that was asked, in this thread."""
    while decoder.step():
        pass


def written(decoder: Decoder, *requests: Asked) -> list[list[int]]:
    """All at once."""
    heard = [Heard() for _ in requests]
    for request, listener in zip(requests, heard, strict=True):
        decoder.submit(request, listener)
    finish(decoder)
    return [listener.ids for listener in heard]


@torch.no_grad()
def generated(model: PreTrainedModel | PeftModel, ids: Sequence[int], num: int) -> list[int]:
    """The oracle: the model alone, by transformers."""
    given = torch.tensor([ids])
    out = model.generate(
        input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=num, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    found: list[int] = out[0, len(ids) :].tolist()
    return found


def prompts(seed: int, number: int) -> list[list[int]]:
    """Of one token to more than a chunk; every third begins as others do."""
    draw = random.Random(seed)

    def text(length: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(length)]

    shared = text(40)
    return [[*(shared if row % 3 == 0 else ()), *text(draw.choice([1, 2, 5, 20, 70]))] for row in range(number)]


@pytest.mark.parametrize("family", EVERY)
def test_among_neighbours_who_come_and_go_an_answer_is_what_the_model_alone_generates(family: str) -> None:
    model, draw = adapted(tiny(family)).eval(), random.Random(1)
    decoder, rows = engine(model), [(ids, draw.randrange(1, 25)) for ids in prompts(0, 33)]
    heard = []
    for ids, num in rows:
        decoder.submit(asked(ids, num, adapter="default", num_top=draw.randrange(3)), listener := Heard())
        heard.append(listener)
        for _ in range(draw.randrange(3)):
            decoder.step()
    finish(decoder)
    assert [listener.ids for listener in heard] == [generated(model, ids, num) for ids, num in rows]
    assert len({tuple(listener.ids[:4]) for listener in heard}) > 10


STATEFUL: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
    "mamba": {"state_size": 8},
    "falcon_h1": {"mamba_d_ssm": 48, "mamba_n_heads": 4, "mamba_d_head": 12, "mamba_d_state": 8},
    "llama4_text": {
        "attention_chunk_size": 32,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 64,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
    },
    "llama": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, "max_position_embeddings": 32},
}
"""What a cache of keys and values is not all of, or what depends on how long the longest row is; and the way in which each is written."""
WAYS = {"lfm2": Slots, "mamba": OneByOne, "falcon_h1": OneByOne, "llama4_text": OneByOne, "llama": OneByOne}


@pytest.mark.parametrize("family", STATEFUL)
def test_models_with_other_states_are_answered_right_too(family: str) -> None:
    model = tiny(family, **STATEFUL[family]).eval()
    decoder, rows = engine(model), sorted(prompts(0, 7), key=len)  # transformers' dynamic angles remember longer rows than the last
    assert isinstance(passes_of(model, (), -1, most_slots=2, most_tokens=100).slots, WAYS[family])
    assert written(decoder, *(asked(ids, 5 + row) for row, ids in enumerate(rows))) == [
        generated(model, ids, 5 + row) for row, ids in enumerate(rows)
    ]


def test_a_model_that_no_way_computes_right_is_refused() -> None:
    """RecurrentGemma keeps its state in its own layers."""
    model = tiny("recurrent_gemma", num_hidden_layers=3, lru_width=48, attention_window_size=64)
    with pytest.raises(ModelError, match="no way to write with RecurrentGemma"):
        engine(model)


def test_functions_that_give_other_results_are_not_used() -> None:
    """What a user may have hung onto a layer, and functions of our own do not see."""
    model = tiny("qwen3").eval()
    model.model.layers[0].input_layernorm.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert written(engine(model), asked([5, 6, 7])) == [generated(model, [5, 6, 7], 12)]


def test_without_the_library_in_c_transformers_layers_write_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = adapted(tiny("qwen3")).eval(), prompts(3, 9)
    requests = [asked(ids, adapter="default") for ids in rows]
    found = written(engine(model), *requests)
    monkeypatch.setattr(abreast, "native", lambda: Compiled(library=None, note="switched off"))
    assert written(engine(model), *requests) == found


def with_adapters(family: str, **lora: Any) -> PeftModel:
    """Three, of unlike ranks."""
    model = adapted(tiny(family), **lora)
    for seed, (name, rank) in enumerate({"second": 2, "third": 6}.items()):
        config = copy.copy(model.peft_config["default"])
        config.r = rank
        model.add_adapter(name, config)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(10 + seed)
            for parameter, weight in model.named_parameters():
                if name in parameter:
                    weight.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("family", ["qwen3", "llama", "granite", "qwen3_moe"])
def test_adapters_and_the_base_alone_are_answered_side_by_side(family: str) -> None:
    """Granite's layers are not known, and experts are adapted in Qwen3-MoE: there adapters take turns."""
    lora = {"target_parameters": "experts"} if family == "qwen3_moe" else {}
    model, base = with_adapters(family, **lora), tiny(family).eval()
    decoder, names = engine(model), ["", "default", "second", "third"]
    assert decoder.adapters == ("default", "second", "third")
    assert decoder._passes.mixes == (family in ("qwen3", "llama"))  # by functions that a trial found right: else right, but in turns
    rows = [(ids, names[row % 4]) for row, ids in enumerate(prompts(5, 16))]
    found = written(decoder, *(asked(ids, adapter=name) for ids, name in rows))
    for (ids, name), answer in zip(rows, found, strict=True):
        if name:
            model.base_model.enable_adapter_layers()
            model.set_adapter(name)
        assert answer == generated(model if name else base, ids, 12), name
    assert len({tuple(written(decoder, asked([1, 2, 3], adapter=name))[0]) for name in names}) == 4


def test_where_adapters_take_turns_those_of_one_go_ahead_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "TURN", 3)
    decoder = engine(with_adapters("granite"))
    over: list[str] = []
    for row in range(16):
        name = ("default", "second")[row % 2]
        decoder.submit(asked([row, 1], 2, adapter=name), heard := Heard())
        heard.token = lambda token, name=name: over.append(name) if token.end else None  # type: ignore[method-assign, misc]
    finish(decoder)
    runs = [len(list(group)) for _, group in itertools.groupby(over)]
    assert sum(runs) == 16 and max(runs) <= 1 + 2 * 3 and len(runs) < 8


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel | PeftModel, ids: Sequence[int]) -> Tensor:
    """Of all tokens at each place [T - 1, V]."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].log_softmax(-1)


def assert_told(tokens: Sequence[Token], expected_NV: Tensor, num_top: int) -> None:
    for token, expected_V in zip(tokens, expected_NV, strict=True):
        assert token.logprob == pytest.approx(float(expected_V[token.id]), abs=1e-5)
        values, ids = expected_V.topk(num_top)
        assert [id for id, _ in token.top] == ids.tolist()
        assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize("length", [2, 9, 150])
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_log_probabilities_are_those_of_a_plain_forward(family: str, length: int) -> None:
    """Of prompt and answer, of prompts of several chunks and of such that were seen before."""
    model = adapted(tiny(family)).eval()
    decoder, ids = engine(model), [(7 * place) % VOCABULARY for place in range(length)]
    for _ in range(2):
        decoder.submit(asked(ids, 6, adapter="default", num_top=3, prompt_told=True), heard := Heard())
        decoder.submit(asked(ids, 6, adapter="default", num_top=3), other := Heard())
        finish(decoder)
        expected_NV = plain_logprobs(model, [*ids, *heard.ids])
        (prompt,) = heard.prompts
        assert [token.id for token in prompt] == ids[1:]
        assert_told(prompt, expected_NV[: length - 1], 3)
        assert_told(heard.tokens, expected_NV[length - 1 :], 3)
        assert_told(other.tokens, expected_NV[length - 1 :], 3)
        assert other.prompts == []


def test_a_prompt_of_one_token_has_no_log_probabilities_of_its_own() -> None:
    decoder = engine(tiny("qwen3"))
    decoder.submit(asked([3], 2, prompt_told=True), heard := Heard())
    finish(decoder)
    assert heard.prompts == [()] and len(heard.ids) == 2


def test_an_answer_ends_with_its_stop_token_or_at_its_length() -> None:
    model = tiny("qwen3").eval()
    ids = generated(model, [1, 2, 3], 8)
    stop = next(id for id in ids[2:] if id not in ids[:2])
    decoder = engine(model)
    for request, end in ((asked([1, 2, 3], 8, stop=[stop]), "stop"), (asked([1, 2, 3], 8), "length")):
        decoder.submit(request, heard := Heard())
        finish(decoder)
        assert heard.ids == (ids[: ids.index(stop) + 1] if end == "stop" else ids)
        assert [token.end for token in heard.tokens] == [*[""] * (len(heard.ids) - 1), end]


def test_what_a_seed_draws_does_not_depend_on_neighbours() -> None:
    model = tiny("qwen3").eval()
    request = asked([1, 2, 3], 20, temperature=1.3, top_p=0.9, seed=5)
    alone = written(engine(model), request)[0]
    others = [asked(ids, 20, temperature=0.7, seed=seed) for seed, ids in enumerate(prompts(1, 9))]
    assert written(engine(model), *others[:5], request, *others[5:])[5] == alone
    changed = [asked([1, 2, 3], 20, temperature=1.3, top_p=0.9, seed=seed) for seed in range(6)]
    assert len({tuple(ids) for ids in written(engine(model), *changed)}) == 6


def passes(model: PreTrainedModel) -> list[tuple[int, ...]]:
    """The shapes of ids, as they go through the model."""
    shapes: list[tuple[int, ...]] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape)))
    return shapes


def test_what_prompts_share_is_computed_once() -> None:
    model = tiny("qwen3").eval()
    decoder, begin = engine(model), list(range(64))
    requests = [asked([*begin, number], 3) for number in range(6)]
    expected = [generated(model, request.ids, 3) for request in requests]
    shapes = passes(model)
    assert written(decoder, *requests) == expected
    assert [shape for shape in shapes if shape[1] > 1] == [(1, 64)]  # a chunk of the first; its last token and five others are one each
    shapes.clear()
    assert written(decoder, *requests) == expected
    assert max(shape[1] for shape in shapes) == 1


def test_a_dialogue_goes_on_where_its_last_answer_ended() -> None:
    model = tiny("qwen3").eval()
    decoder, ids = engine(model), list(range(40))
    answer = written(decoder, asked(ids, 30))[0]
    shapes = passes(model)
    longer = [*ids, *answer, 9, 8, 7]
    assert written(decoder, asked(longer, 2)) == [generated(model, longer, 2)]
    assert shapes[0] == (1, 73 - 64)


def test_what_is_kept_of_prompts_is_bounded_and_goes_oldest_first() -> None:
    model = tiny("qwen3").eval()
    decoder = engine(model, prefix_tokens=64)
    for number in range(20):
        written(decoder, asked([number, *range(33)], 2))
    assert decoder.num_kept == 64
    shapes = passes(model)
    written(decoder, asked([19, *range(33)], 2), asked([0, *range(33)], 2))
    assert sorted(shape[1] for shape in shapes if shape[1] > 1) == [2, 34]


def test_an_adapter_does_not_see_what_another_left() -> None:
    model = with_adapters("qwen3")
    decoder, ids = engine(model), list(range(50))
    names = ["default", "second", ""]
    first = [written(decoder, asked(ids, adapter=name))[0] for name in names]
    assert [written(engine(model), asked(ids, adapter=name))[0] for name in names] == first and len(set(map(tuple, first))) == 3


def test_while_a_long_prompt_is_read_others_go_on() -> None:
    decoder = engine(tiny("qwen3"), chunk=16)
    decoder.submit(asked([1, 2, 3], 40), heard := Heard())
    decoder.step()
    decoder.submit(asked([index % 90 for index in range(120)], 2), late := Heard())
    for _ in range(6):
        before = len(heard.tokens)
        decoder.step()
        assert len(heard.tokens) == before + 1 and late.tokens == []


def test_who_cancels_hears_no_more_and_leaves_the_place_to_the_next() -> None:
    decoder = engine(tiny("qwen3"), slots=1)
    ticket = decoder.submit(asked([1, 2, 3], 100), heard := Heard())
    waiting = decoder.submit(asked([1, 2], 100), second := Heard())
    decoder.submit(asked([4, 5], 3), third := Heard())
    for _ in range(3):
        decoder.step()
    ticket.cancel()
    waiting.cancel()
    finish(decoder)
    ticket.cancel()
    assert len(heard.tokens) == 4 and second.tokens == [] and len(third.tokens) == 3  # reading's last pass and writing's first are one step
    assert heard.errors == second.errors == []


def test_one_may_cancel_while_being_told() -> None:
    decoder = engine(tiny("qwen3"))
    heard = Heard()
    ticket = decoder.submit(asked([1, 2, 3], 100), heard)
    heard.token = lambda token: (heard.tokens.append(token), ticket.cancel())  # type: ignore[method-assign, assignment]
    finish(decoder)
    assert len(heard.tokens) == 1


def test_a_pass_that_fails_is_told_to_its_rows_and_to_no_others() -> None:
    model = tiny("qwen3").eval()
    decoder = engine(model)
    decoder.submit(asked([1, 2, 3], 10), writing := Heard())
    decoder.step()

    def fail(_: object, given: tuple[Tensor]) -> None:
        if (given[0] == 77).any():
            raise RuntimeError("no luck with 77")

    model.model.embed_tokens.register_forward_pre_hook(fail)
    decoder.submit(asked([77, 1], 10), unlucky := Heard())
    decoder.submit(asked(list(range(30)), 10), later := Heard())
    finish(decoder)
    assert [str(error) for error in unlucky.errors] == ["no luck with 77"] and unlucky.tokens == []
    assert writing.ids == generated(model, [1, 2, 3], 10) and later.ids == generated(model, range(30), 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", ["chosen", "told"])
def test_memory_that_is_short_behind_a_pass_fails_its_rows_and_not_the_engine(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen3").eval()
    decoder = engine(model).start()
    real = getattr(decode, function)

    def short(logits: Tensor, *given: Any) -> Any:
        if len(logits) == 4:  # of a prompt all but its first token; or of four that write
            raise MemoryError("no room for logits")
        return real(logits, *given)

    monkeypatch.setattr(decode, function, short)
    unlucky = [Heard() for _ in range(4)]
    with decoder._changed:  # so that all are asked before the first step
        for row, listener in enumerate(unlucky):
            decoder.submit(asked([1 + row, 2, 3, 4, 5], 6, prompt_told=function == "told"), listener)
    assert all(listener.over.wait(30) for listener in unlucky)
    assert [[str(error) for error in listener.errors] for listener in unlucky] == [["no room for logits"]] * 4
    assert not decoder.has_ended
    decoder.submit(asked([1, 2, 3], 10), heard := Heard())
    assert heard.over.wait(30) and heard.ids == generated(model, [1, 2, 3], 10)
    decoder.close()
    assert decoder.has_ended


def test_numbers_that_are_not_finite_fail_their_row_and_leave_nothing_behind() -> None:
    model = tiny("qwen3").eval()
    expected = generated(model, [1, 2, 3], 10)
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = torch.nan  # tied to the head: but only a prompt with it spoils all logits
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.nan_to_num(0.0).clone())
    decoder = engine(model, slots=1)
    decoder.submit(asked([50, *range(40)], 10), heard := Heard())
    finish(decoder)
    assert heard.tokens == [] and "not finite" in str(heard.errors[0])
    assert written(decoder, asked([1, 2, 3], 10))[0][:3] == expected[:3]


def test_rows_stay_within_the_places_they_are_given() -> None:
    model = tiny("qwen3").eval()
    decoder = engine(model, slots=16, cache_tokens=150)
    shapes = passes(model)
    written(decoder, *(asked([row, 1], 48) for row in range(6)))
    assert max(rows for rows, _ in shapes) == 3  # of 50 tokens
    shapes.clear()
    written(decoder, *(asked([row, 1], 5) for row in range(20)))
    assert max(rows for rows, _ in shapes) == 16
    assert len(written(decoder, asked([1, 2], 190))[0]) == 190  # one row always fits


@pytest.mark.parametrize("number", [200, pytest.param(2_000, marks=pytest.mark.slow)])
def test_memory_is_flat_over_many_requests(number: int) -> None:
    decoder, draw = engine(tiny("qwen3"), prefix_tokens=320), random.Random(0)

    def some(number: int) -> int:
        for _ in range(number):
            ids = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 40))]
            decoder.submit(asked(ids, draw.randrange(1, 4)), Heard())
        finish(decoder)
        gc.collect()
        return sum(each.untyped_storage().nbytes() for each in gc.get_objects() if type(each) is Tensor)

    after_some = some(100)
    assert some(number) <= after_some + 4_096 and decoder.num_kept <= 320


def test_a_thread_of_its_own_answers_many_threads_and_ends_when_it_is_closed() -> None:
    model = tiny("qwen3").eval()
    decoder, rows = engine(model, max_length=5_000).start(), prompts(2, 24)
    heard = [Heard() for _ in rows]

    def ask(part: int) -> None:
        for row in range(part, len(rows), 4):
            decoder.submit(asked(rows[row], 8), heard[row])

    threads = [threading.Thread(target=ask, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(listener.over.wait(30) for listener in heard)
    assert [listener.ids for listener in heard] == [generated(model, ids, 8) for ids in rows]
    decoder.submit(asked([1, 2], 4_000), long := Heard())
    decoder.close()
    decoder.submit(asked([1, 2], 4), late := Heard())
    decoder.close()
    assert "closed" in str(long.errors[0]) and "closed" in str(late.errors[0]) and decoder.adapters == ()

"""Adapters come and go while an engine answers: others' rows go on as if nothing had happened, and nothing of the old is left."""

import functools
import gc
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import ModelError, RunError
from luthier.core.generation import Asked, Token, Unloaded
from luthier.model.adapt import load_adapter, refuse_whole_weights, take_off
from luthier.model.decode import Decoder
from tests.model.test_decode import Heard, asked, engine, finish, prompts, written
from tests.model.zoo import adapted, tiny

WAYS = {"qwen3": {}, "granite": {}, "mamba": {"target_modules": ["in_proj"]}, "qwen3_moe": {"target_parameters": "experts"}}
"""By functions, by the model's own layers, row by row, and with adapted experts."""


def saved(folder: Path, family: str = "qwen3", seed: int = 1, **lora: Any) -> Path:
    """An adapter that another process has written."""
    model = adapted(tiny(family), **{**WAYS.get(family, {}), **lora})
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def put_on(decoder: Decoder, folder: Path, name: str) -> None:
    decoder.change(functools.partial(load_adapter, folder=folder, name=name))


def take(decoder: Decoder, name: str) -> None:
    decoder.change(functools.partial(take_off, name=name))


def told(heard: Sequence[Heard]) -> list[list[Token]]:
    assert not any(each.errors for each in heard)
    return [each.tokens for each in heard]


def begun(decoder: Decoder, requests: Sequence[Asked], steps: int) -> list[Heard]:
    """Some steps after they were asked."""
    heard = [Heard() for _ in requests]
    for request, listener in zip(requests, heard, strict=True):
        decoder.submit(request, listener)
    for _ in range(steps):
        decoder.step()
    return heard


@pytest.mark.parametrize("family", WAYS)
def test_who_is_answered_by_others_goes_on_when_an_adapter_comes_and_goes(family: str, tmp_path: Path) -> None:
    one, two = saved(tmp_path / "one", family, 1), saved(tmp_path / "two", family, 2)
    alone = [asked(ids, 20, adapter="one" if row % 2 else "") for row, ids in enumerate(prompts(3, 8))]
    quiet = engine(load_adapter(tiny(family), one, "one"))
    expected = begun(quiet, alone, 0)
    finish(quiet)
    decoder = engine(load_adapter(tiny(family), one, "one"))
    heard = begun(decoder, alone, 3)
    put_on(decoder, two, "two")
    late = begun(decoder, [asked(ids, 9, adapter="two") for ids in prompts(4, 3)], 4)
    finish(decoder)
    take(decoder, "two")
    assert decoder.adapters == ("one",)
    assert [each.ids for each in heard] == [each.ids for each in expected]
    for one, other in zip(told(heard), told(expected), strict=True):
        assert [token.logprob for token in one] == pytest.approx([token.logprob for token in other], abs=1e-5)
    started = engine(load_adapter(tiny(family), two, "two"))
    assert [each.ids for each in late] == written(started, *(asked(ids, 9, adapter="two") for ids in prompts(4, 3)))


@pytest.mark.parametrize("family", WAYS)
def test_a_base_that_had_none_gets_its_first_and_is_itself_again_without_it(family: str, tmp_path: Path) -> None:
    decoder, requests = engine(tiny(family)), [asked(ids, 8) for ids in prompts(5, 4)]
    names = [name for name, _ in decoder._base.named_modules()]
    before = written(decoder, *requests)
    folder, ids = saved(tmp_path, family), [3, 1, 4, 1, 5]
    for _ in range(2):
        half = begun(decoder, requests, 2)
        put_on(decoder, folder, "first")
        finish(decoder)
        assert [each.ids for each in half] == before == written(decoder, *requests)
        (found,) = written(decoder, asked(ids, 8, adapter="first"))
        assert [found] == written(engine(load_adapter(tiny(family), folder)), asked(ids, 8, adapter="default"))
        assert [found] != written(decoder, asked(ids, 8))
        take(decoder, "first")
        assert decoder.adapters == () and [name for name, _ in decoder._base.named_modules()] == names
        assert written(decoder, *requests) == before


def test_another_adapter_of_the_same_name_answers_from_nothing_of_the_old(tmp_path: Path) -> None:
    ids = prompts(0, 1)[0]
    decoder, wanted = engine(tiny("qwen3")), []
    for seed in (1, 2):
        folder = saved(tmp_path / str(seed), seed=seed)
        wanted.append(written(engine(load_adapter(tiny("qwen3"), folder, "same")), asked(ids, 30, adapter="same")))
        put_on(decoder, folder, "same")
        assert written(decoder, asked(ids, 30, adapter="same")) == wanted[-1]
        kept = decoder.num_kept
        take(decoder, "same")
        assert kept > 0 and decoder.num_kept == 0
    assert wanted[0] != wanted[1]


def test_who_is_answered_by_one_that_goes_is_told_and_so_is_who_asks_for_it_then(tmp_path: Path) -> None:
    decoder = engine(load_adapter(tiny("qwen3"), saved(tmp_path / "one"), "one"), slots=2)
    put_on(decoder, saved(tmp_path / "two", seed=2), "two")
    writing, stays, waiting = begun(decoder, [asked([1, 2], 50, adapter=name) for name in ("two", "one", "two")], 4)
    assert len(writing.tokens) > 2 and not waiting.tokens
    take(decoder, "two")
    late = Heard()
    decoder.submit(asked([1], 5, adapter="two"), late)
    finish(decoder)
    for heard in (writing, waiting, late):
        assert [type(error) for error in heard.errors] == [Unloaded]
    assert len(stays.ids) == 50


def test_rows_that_can_no_longer_share_passes_are_read_again_and_told_once(tmp_path: Path) -> None:
    """An adapter with DoRA is answered in turns with others, which were side by side until it came."""
    decoder = engine(load_adapter(tiny("qwen3"), saved(tmp_path / "one"), "one"))
    requests = [asked(ids, 12, adapter="one" if row % 2 else "", prompt_told=row < 4) for row, ids in enumerate(prompts(7, 8))]
    expected = begun(decoder, requests, 0)
    finish(decoder)
    for steps in (1, 3, 8, 12):
        heard = begun(decoder, requests, steps)
        put_on(decoder, saved(tmp_path / "dora", use_dora=True), "dora")
        assert not decoder._passes.mixes
        finish(decoder)
        assert [each.ids for each in heard] == [each.ids for each in expected]
        assert [len(each.prompts) for each in heard] == [len(each.prompts) for each in expected]
        for one, other in zip(told(heard), told(expected), strict=True):
            assert [token.logprob for token in one] == pytest.approx([token.logprob for token in other], abs=1e-4)
        take(decoder, "dora")
        assert decoder._passes.mixes


def spoil(folder: Path, how: str) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    first = next(iter(weights))
    if how == "missing":
        del weights[first]
    elif how == "shape":
        weights[first] = weights[first][:1].clone()
    else:
        weights[first][0] = torch.nan
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("how", ["missing", "shape", "nan"])
@pytest.mark.parametrize("first", [True, False])
def test_one_that_does_not_fit_leaves_nothing_behind(how: str, first: bool, tmp_path: Path) -> None:
    good, bad = saved(tmp_path / "good"), saved(tmp_path / "bad", seed=2)
    spoil(bad, how)
    decoder = engine(tiny("qwen3") if first else load_adapter(tiny("qwen3"), good, "good"))
    requests = [asked(ids, 8, adapter=name) for name in ("", *decoder.adapters) for ids in prompts(5, 3)]
    before, names = written(decoder, *requests), [name for name, _ in decoder._base.named_modules()]
    with pytest.raises(ModelError):
        put_on(decoder, bad, "bad")
    assert [name for name, _ in decoder._base.named_modules()] == names and "bad" not in decoder.adapters
    assert written(decoder, *requests) == before
    put_on(decoder, good, "bad")
    assert written(decoder, asked([1, 2], 8, adapter="bad")) == written(
        engine(load_adapter(tiny("qwen3"), good)), asked([1, 2], 8, adapter="default")
    )


def test_weights_that_would_change_the_base_are_found(tmp_path: Path) -> None:
    refuse_whole_weights(saved(tmp_path))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    save_file({**weights, key: torch.ones(4, 4)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"1 weights that are not LoRA's, first base_model.*base_layer"):
        refuse_whole_weights(tmp_path)


def test_a_thread_answers_on_while_others_change_it_and_an_engine_that_ends_says_so(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    decoder = engine(tiny("qwen3"))
    expected = written(decoder, *(asked(ids, 40) for ids in prompts(1, 6)))
    decoder.start()
    heard = [Heard() for _ in expected]
    for ids, listener in zip(prompts(1, 6), heard, strict=True):
        decoder.submit(asked(ids, 40), listener)

    def come_and_go(name: str) -> None:
        for _ in range(5):
            put_on(decoder, folder, name)
            take(decoder, name)

    threads = [threading.Thread(target=come_and_go, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(listener.over.wait(60) for listener in heard)
    assert [each.ids for each in heard] == expected and decoder.adapters == ()
    decoder.close()
    with pytest.raises(RunError, match="closed"):
        put_on(decoder, folder, "late")


@pytest.mark.slow
def test_memory_is_flat_over_200_comings_and_goings(tmp_path: Path) -> None:
    folders = [saved(tmp_path / str(seed), seed=seed) for seed in range(2)]
    decoder, process, sizes = engine(tiny("qwen3")), psutil.Process(), []
    for number in range(200):
        put_on(decoder, folders[number % 2], name := f"loaded-{number:04}")
        written(decoder, asked(prompts(number, 1)[0], 4, adapter=name))
        take(decoder, name)
        if number % 20 == 19:
            gc.collect()
            sizes.append(process.memory_info().rss)
    assert decoder.num_kept == 0 and len([each for each in gc.get_objects() if type(each).__name__ == "LoraModel"]) <= 1
    assert max(sizes[2:]) - sizes[1] < 4 * 2**20, [size // 2**20 for size in sizes]

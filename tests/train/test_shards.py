"""Two ranks that divide the model train what one trains, and keep it in pieces: real processes, one group for all of it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.core import jsonl
from luthier.train import checkpoint
from luthier.train.checkpoint import State
from luthier.train.loop import _take_step
from luthier.train.run import _set_up, train
from tests.train.in_shards import (
    BFLOAT16,
    FEW_BITS,
    HOWS,
    KILLED_IN,
    LAST_STEP_OF_ONE_ROW,
    MOVES,
    RESUMED_AFTER,
    TRAINED,
    answered,
    first_steps,
    odd,
    shared,
)
from tests.train.recorded import metrics
from tests.train.test_ranks import ROOT, TORCHRUN, assert_the_same_up_to_rounding
from tests.train.workshop import Workshop, killed_in_step

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """The workshop in which one process has trained everything first, and so prepared the rows; some runs of it were killed."""
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_RUNS", str(folder / "runs"))
        workshop = Workshop(folder)
        for what, sections in TRAINED.items():
            train(workshop.job(f"one {what}", **sections))
            for name, (before, _) in MOVES.items():
                if before == "none":
                    killed_in_step(workshop.job(f"{name} {what}", **sections), KILLED_IN)
        train(workshop.job("one one-row", **LAST_STEP_OF_ONE_ROW))
        workshop.job("experts", **FEW_BITS["experts in int8"])  # makes the base and prepares its rows
        yield workshop


@pytest.fixture(scope="module")
def found(alone: Workshop) -> Found:
    """What each of two ranks left after all their scenes."""
    command = [sys.executable, *TORCHRUN, "-m", "tests.train.in_shards", str(alone.folder)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    group = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        _, told = group.communicate(timeout=280)
    finally:
        group.terminate()  # torchrun ends its ranks
        group.wait(60)
    assert group.returncode == 0, told[-4000:]
    return [json.loads((alone.folder / f"shards-rank-{rank}.json").read_text()) for rank in (0, 1)]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a final adapter, or of a whole model."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("what", TRAINED)
@pytest.mark.parametrize("how", HOWS)
def test_a_divided_run_records_what_one_process_records(alone: Workshop, found: Found, how: str, what: str) -> None:
    one, two = alone.job(f"one {what}", **TRAINED[what]), alone.job(f"{how} {what}", **shared(how, **TRAINED[what]))
    assert_the_same_up_to_rounding(metrics(one.folder), metrics(two.folder))


@pytest.mark.parametrize("how", HOWS)
def test_a_divided_run_that_was_killed_is_the_uninterrupted_one_bit_for_bit(alone: Workshop, found: Found, how: str) -> None:
    whole, broken = (alone.job(f"{how} {name}", **shared(how, **TRAINED["lora"])).folder for name in ("lora", "broken"))
    saved = sorted(path.name for path in whole.checkpoint(12).iterdir())
    assert saved == [
        *(f"{stem}-0000{number}-of-00002.safetensors" for stem in ("adapter",) for number in (1, 2)),
        "manifest.json",
        *(f"{stem}-0000{number}-of-00002.safetensors" for stem in ("optimizer",) for number in (1, 2)),
        "state.json",
    ]
    assert all((whole.checkpoint(12) / name).read_bytes() == (broken.checkpoint(12) / name).read_bytes() for name in saved)
    assert metrics(whole) == metrics(broken)


@pytest.mark.parametrize("what", TRAINED)
@pytest.mark.parametrize("name", MOVES)
def test_a_run_goes_on_with_other_ranks_and_other_pieces(alone: Workshop, found: Found, name: str, what: str) -> None:
    after = MOVES[name][1]
    job = alone.job(f"{name} {what}", **(TRAINED[what] if after == "none" else shared(after, **TRAINED[what])))
    if after == "none":
        assert train(job).last_step == 12
    resumed = [record["step"] for record in jsonl.records(job.folder.events) if record["event"] == "resumed"]
    assert resumed == [RESUMED_AFTER]
    one = alone.job(f"one {what}", **TRAINED[what])
    assert_the_same_up_to_rounding(metrics(one.folder), metrics(job.folder))
    finals = weights_of(one.folder.adapter), weights_of(job.folder.adapter)
    assert finals[0].keys() == finals[1].keys()
    assert all(torch.allclose(weight, finals[1][name], rtol=1e-3, atol=1e-5) for name, weight in finals[0].items())


@pytest.mark.parametrize("how", HOWS)
def test_the_final_adapter_is_one_plain_folder(alone: Workshop, found: Found, how: str) -> None:
    one, two = (alone.folder / "runs" / name / "adapter" for name in ("one lora", f"{how} lora"))
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    assert (one / "adapter_config.json").read_bytes() == (two / "adapter_config.json").read_bytes()
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(alone.base()), str(two))
    assert (
        loaded.state_dict().keys()
        == PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(alone.base()), str(one)).state_dict().keys()
    )
    assert not any(weight.eq(0).all() for name, weight in loaded.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("how", HOWS)
def test_the_final_model_is_one_plain_folder(alone: Workshop, found: Found, how: str) -> None:
    one, two = (alone.folder / "runs" / name / "adapter" for name in ("one full", f"{how} full"))
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
    models = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (one, two)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.allclose(weight, models[1][name], rtol=1e-3, atol=1e-5) for name, weight in models[0].items())


def test_what_ranks_write_is_each_number_once_with_its_place_in_the_whole(alone: Workshop, found: Found) -> None:
    folder = alone.folder / "runs" / "zero3 lora" / "checkpoints" / "step-000012"
    whole = load_file(alone.folder / "runs" / "one lora" / "checkpoints" / "step-000012" / "adapter.safetensors")
    numbers = dict.fromkeys(whole, 0)
    for number in (1, 2):
        with safe_open(folder / f"adapter-0000{number}-of-00002.safetensors", "pt") as file:
            boxes = json.loads(file.metadata()["boxes"])
            for name in file.keys():  # noqa: SIM118  it is no mapping
                box = file.get_tensor(name)
                assert boxes[name]["shape"] == list(whole[name].shape)
                place = tuple(slice(at, at + size) for at, size in zip(boxes[name]["offsets"], box.shape, strict=True))
                assert torch.allclose(box, whole[name][place], rtol=1e-3, atol=1e-5)
                numbers[name] += box.numel()
    assert numbers == {name: weight.numel() for name, weight in whole.items()}


@pytest.mark.parametrize("how", HOWS)
def test_a_rank_without_rows_takes_part(alone: Workshop, found: Found, how: str) -> None:
    given = [rank["a_rank_without_rows"] for rank in found]
    assert [sum(shares) for shares in zip(*given, strict=True)] == [23, 1, 23, 1]
    one = alone.job("one one-row", **LAST_STEP_OF_ONE_ROW)
    assert_the_same_up_to_rounding(metrics(one.folder), metrics(alone.job(f"{how} one-row", **shared(how, **LAST_STEP_OF_ONE_ROW)).folder))


@pytest.mark.parametrize("how", HOWS)
def test_bfloat16_weights_are_divided_beside_float32_adapters(alone: Workshop, found: Found, how: str) -> None:
    assert found[0]["in_bfloat16"][how] == ["torch.float32"]
    replicas, divided = (metrics(alone.job(f"{name} bfloat16", **shared(name, **BFLOAT16)).folder) for name in ("none", how))
    assert [line["loss"] for line in divided] == [pytest.approx(line["loss"], rel=1e-6) for line in replicas]


def test_all_ranks_answer_together_what_one_process_answers(alone: Workshop, found: Found) -> None:
    loop, _ = _set_up(alone.job("answers", **TRAINED["lora"]))
    state = State()
    for _ in range(3):
        state, _ = _take_step(loop, state)
    expected = answered(loop.model)
    assert any(expected)
    assert [rank["answers"] for rank in found] == [dict.fromkeys(HOWS, expected)] * 2


def test_float16_that_overflows_on_one_rank_halves_the_scale_of_all(found: Found) -> None:
    assert [rank["one_rank_overflows"] for rank in found] == [{how: [2, 4.0, True] for how in HOWS}] * 2


def test_a_signal_to_one_rank_ends_all_in_the_same_step_and_the_run_goes_on(alone: Workshop, found: Found) -> None:
    (number, step), other = (rank["a_signal_to_one_rank"] for rank in found)
    assert other == [number, step]
    assert number == signal.SIGTERM
    assert 3 < step < 8
    signalled = metrics(alone.job("signalled", **shared("zero3", lora={"dropout": 0.1}, training={"micro_batch_size": 1})).folder)
    assert_the_same_up_to_rounding(metrics(alone.job("one lora", **TRAINED["lora"]).folder), signalled)


def test_the_full_disk_of_one_rank_is_an_error_of_all_and_spares_the_checkpoint_before(found: Found) -> None:
    for rank in found:
        kind, what, *left = rank["the_disk_of_one_rank_is_full"]["stop"]
        assert (kind, left) == ("DiskError", ["step-000003", "step-000006"])
        assert "File too large" in what
        assert rank["the_disk_of_one_rank_is_full"]["continue"] == ["trained on", "step-000003", "step-000006"]


def test_what_one_ranks_disk_changes_is_found_by_all_before_it_is_relied_on(found: Found) -> None:
    for rank in found:
        kind, what, *left = rank["a_disk_that_keeps_something_else"]
        assert (kind, left) == ("DiskError", [])
        assert "optimizer-00002-of-00002.safetensors is not what was written" in what


def test_a_missing_piece_makes_a_checkpoint_none(alone: Workshop, found: Found) -> None:
    folder = alone.folder / "runs" / "zero2 lora" / "checkpoints" / "step-000010"
    checkpoint.verify(folder)
    (folder / "adapter-00002-of-00002.safetensors").unlink()
    with pytest.raises(checkpoint.Damaged, match=r"adapter-00002-of-00002\.safetensors is missing"):
        checkpoint.verify(folder)


@pytest.mark.parametrize("how", HOWS)
def test_what_cannot_be_divided_evenly_is_divided_unevenly(found: Found, how: str) -> None:
    one = odd()
    for rank in found:
        for step, (loss, norm) in zip(rank["unevenly"][how], one, strict=True):
            assert step == [pytest.approx(loss, rel=1e-5), pytest.approx(norm, rel=1e-5)]


@pytest.mark.parametrize("name", FEW_BITS)
@pytest.mark.parametrize("how", HOWS)
def test_weights_in_few_bits_are_trained_over_as_by_one_process(alone: Workshop, found: Found, how: str, name: str) -> None:
    one = first_steps(alone.job(name, **FEW_BITS[name]))
    for rank in found:
        for step, (loss, norm) in zip(rank["quantised"][f"{how} {name}"], one, strict=True):
            assert step == [pytest.approx(loss, rel=1e-5), pytest.approx(norm, rel=1e-5)]


@pytest.mark.parametrize("what", TRAINED)
@pytest.mark.parametrize("how", HOWS)
def test_a_rank_holds_what_the_plan_counts(found: Found, how: str, what: str) -> None:
    for rank in found:
        held = rank["held"][f"{how} {what}"]
        for kind in ("held", "gradients", "optimizer"):
            assert held[kind] == pytest.approx(held[f"planned {kind}"], rel=0.01)
        assert 0 < held["gathered"] <= held["planned gathered"]
    assert found[0]["held"]["zero3 lora"]["held"] < 0.6 * found[0]["held"]["zero2 lora"]["held"]  # frozen weights are whole under zero2


def test_a_rank_says_that_it_waits_for_others_in_the_middle_of_a_pass(found: Found) -> None:
    """Two layers, embedding and head tied, and the last norm: each is put together before it is used, and its gradients are summed."""
    assert [rank["waited"] for rank in found] == [{"zero2": 4 + 4, "zero3": 4 + 4 + 4}] * 2

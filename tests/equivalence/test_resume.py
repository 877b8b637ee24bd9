"""A run that was killed and resumed is bit for bit the run that was not (trap 25)."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.core import jsonl
from luthier.plan import layout
from luthier.train.run import _continued, _set_up, train
from tests.train.recorded import metrics
from tests.train.workshop import Workshop, killed_in_step

IN_8_BITS = {"lora": {"r": 160, "dropout": 0.1}, "training": {"optimizer": "adamw_8bit", "learning_rate": 1e-3}}
"""A rank at which the adapter's tensors are large enough for it."""


@pytest.mark.parametrize(
    ("step", "resumed_after", "sections"),
    [
        (3, 0, {"data": {"packing": "off"}}),
        (9, 6, {"data": {"packing": "tree"}}),
        (12, 10, {"data": {"packing": "bins"}}),
        (9, 6, {"model": {"quantization": "nf4"}, "data": {"packing": "tree"}}),
        (9, 6, {"model": {"base": "mixture", "quantization": "int8"}, "data": {"packing": "bins"}}),
        (9, 6, {"data": {"packing": "tree"}, **IN_8_BITS}),
    ],
    ids=["padded", "tree", "bins", "nf4", "experts in int8", "AdamW in 8 bits"],
)
def test_resumed_is_uninterrupted_bit_for_bit_with_dropout(
    workshop: Workshop, step: int, resumed_after: int, sections: dict[str, Any]
) -> None:
    whole, broken = (workshop.job(name, **sections) for name in ("whole", "broken"))
    assert whole.recipe.lora.dropout > 0
    train(whole)
    killed_in_step(broken, step)
    torch.manual_seed(99)  # whatever the new process's generators hold
    assert train(broken).last_step == 12
    resumed = [record["step"] for record in jsonl.records(broken.folder.events) if record["event"] == "resumed"]
    assert resumed == ([resumed_after] if resumed_after else [])
    for name in ("adapter.safetensors", "optimizer.safetensors", "state.json"):
        assert (whole.folder.checkpoint(12) / name).read_bytes() == (broken.folder.checkpoint(12) / name).read_bytes()
    assert metrics(whole.folder) == metrics(broken.folder)
    saved = {name.partition("/")[0] for name in load_file(whole.folder.checkpoint(12) / "optimizer.safetensors")}
    in_8_bits = whole.recipe.training.optimizer != "adamw"
    assert saved == ({"state1", "state2", "absmax1", "absmax2", "step"} if in_8_bits else {"exp_avg", "exp_avg_sq", "step"})


def test_resumed_with_other_free_memory_is_uninterrupted_under_auto(workshop: Workshop) -> None:
    auto = {"micro_batch_size": "auto"}
    one_row = {"training": auto, "free_bytes": 1}
    whole, broken = workshop.job("whole", **one_row), workshop.job("broken", **one_row)
    train(whole)
    began_with = killed_in_step(broken, 9)
    broken = workshop.job("broken", training=auto)
    fresh = broken.plan.setup.micro_batch
    assert fresh != began_with
    train(broken)
    for name in ("adapter.safetensors", "optimizer.safetensors", "state.json"):
        assert (whole.folder.checkpoint(12) / name).read_bytes() == (broken.folder.checkpoint(12) / name).read_bytes()
    assert metrics(whole.folder) == metrics(broken.folder)
    kept = [record for record in jsonl.records(broken.folder.events) if record["event"] == "sizes_kept"]
    assert [(record["kept"]["tokens"], record["fitting_now"]["tokens"]) for record in kept] == [(began_with.tokens, fresh.tokens)]
    again = _set_up(_continued(broken))[0].micro_batch
    assert again == began_with  # and once more: the first start's, not the last's


def test_a_run_without_a_checkpoint_begins_with_what_fits_now(workshop: Workshop) -> None:
    auto = {"micro_batch_size": "auto"}
    roomy, tight = (_set_up(_continued(workshop.job(training=auto, free_bytes=free)))[0].micro_batch for free in (10**10, 1))
    assert roomy.tokens > tight.tokens


def test_dropout_has_an_effect(workshop: Workshop) -> None:
    with_dropout, without = workshop.job("with"), workshop.job("without", lora={"dropout": 0.0})
    train(with_dropout)
    train(without)
    assert metrics(with_dropout.folder)[5]["loss"] != metrics(without.folder)[5]["loss"]


def test_a_run_that_has_begun_keeps_its_packing(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    job = workshop.job()
    began = killed_in_step(job, 9)
    assert began.packing == "tree"
    monkeypatch.setattr(layout, "WORTH_A_TREE", 2.0)
    assert _set_up(workshop.job("another"))[0].micro_batch.packing == "bins"
    assert _set_up(_continued(workshop.job()))[0].micro_batch == began

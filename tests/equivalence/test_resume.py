"""A run that was killed and resumed is bit for bit the run that was not (trap 25)."""

from typing import Any

import pytest
import torch
from torch import nn

from luthier.core import jsonl
from luthier.train.checkpoint import State
from luthier.train.loop import fit
from luthier.train.run import TrainingJob, _set_up, train
from tests.train.workshop import Workshop

TIMES = {"seconds", "data_seconds", "tokens_per_second", "memory_bytes", "device_utilization"}


class Killed(Exception):
    """Stands for a power cut."""


def killed_in_step(job: TrainingJob, step: int) -> None:
    """Train until the second micro batch of this step."""
    loop, _, _ = _set_up(job)
    forward_passes = 0

    def die(module: nn.Module, inputs: object) -> None:
        nonlocal forward_passes
        forward_passes += module.training
        if forward_passes == 2 * step:  # two micro batches a step
            raise Killed

    loop.model.register_forward_pre_hook(die)
    with pytest.raises(Killed):
        fit(loop, State())


def lines(job: TrainingJob) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in jsonl.records(job.folder.metrics)]


@pytest.mark.parametrize(("step", "resumed_after"), [(3, 0), (9, 6), (12, 10)])
def test_resumed_is_uninterrupted_bit_for_bit_with_dropout(workshop: Workshop, step: int, resumed_after: int) -> None:
    whole, broken = workshop.job("whole"), workshop.job("broken")
    assert whole.recipe.lora.dropout > 0
    train(whole)
    killed_in_step(broken, step)
    torch.manual_seed(99)  # whatever the new process's generators hold
    assert train(broken).last_step == 12
    resumed = [record["step"] for record in jsonl.records(broken.folder.events) if record["event"] == "resumed"]
    assert resumed == ([resumed_after] if resumed_after else [])
    for name in ("adapter.safetensors", "optimizer.safetensors", "state.json"):
        assert (whole.folder.checkpoint(12) / name).read_bytes() == (broken.folder.checkpoint(12) / name).read_bytes()
    assert lines(whole) == lines(broken)


def test_dropout_has_an_effect(workshop: Workshop) -> None:
    with_dropout, without = workshop.job("with"), workshop.job("without", lora={"dropout": 0.0})
    train(with_dropout)
    train(without)
    assert lines(with_dropout)[5]["loss"] != lines(without)[5]["loss"]

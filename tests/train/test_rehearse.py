"""The worst case is tried before step 1, and leaves nothing behind."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from luthier.core import jsonl
from luthier.core.errors import PlanRefused
from luthier.plan.layout import place_of
from luthier.plan.plan import make
from luthier.train.checkpoint import State
from luthier.train.loop import fit
from luthier.train.rehearse import rehearse
from luthier.train.run import _set_up, _worst, train
from tests.train.workshop import Workshop

BY_ANSWERS: dict[str, Any] = {
    "evaluation": {"tasks": [{"name": "answers", "split": "validation", "max_new_tokens": 12}]},
    "checkpoints": {"best_by": "answers.exact"},
}


@pytest.mark.parametrize("lora", [{"r": 4, "dropout": 0.1}, "none"])
def test_a_rehearsal_teaches_nothing_and_leaves_nothing(workshop: Workshop, lora: object) -> None:
    job = workshop.job(lora=lora)
    loop, _ = _set_up(job)
    before = {name: weight.clone() for name, weight in loop.model.state_dict().items()}
    done = rehearse(loop, job.prepared.rows("train"), _worst(job, job.plan))
    assert all(torch.equal(weight, before[name]) for name, weight in loop.model.state_dict().items())
    assert not loop.optimizer.state
    assert all(parameter.grad is None for parameter in loop.model.parameters())
    assert loop.model.training
    assert not (job.folder.path / "rehearsal").exists()
    assert done.peak_bytes > 10**8
    assert min(done.micro_batch_seconds, done.validation_seconds, done.save_seconds) > 0


def test_the_worst_case_is_the_largest_micro_batch_of_the_run_beside_the_optimizers_state(workshop: Workshop) -> None:
    job = workshop.job(data={"packing": "off"}, training={"micro_batch_size": 2, "max_steps": 12})
    seen: dict[bool, list[int]] = {True: [], False: []}
    states: list[int] = []

    def embed(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.Embedding):
            seen[torch.is_grad_enabled()].append(inputs[0].numel())
            states.append(len(loop.optimizer.state))

    loop, plan = _set_up(job)
    handle = register_module_forward_pre_hook(embed)
    try:
        rehearse(loop, job.prepared.rows("train"), _worst(job, plan))
        rehearsed = {mode: max(numbers) for mode, numbers in seen.items()}
        assert min(states) > 0
        fit(loop, State())
    finally:
        handle.remove()
    assert rehearsed == {mode: max(numbers) for mode, numbers in seen.items()}


def test_the_longest_answers_are_tried_side_by_side_without_gradients_and_without_torchs_chance(workshop: Workshop) -> None:
    job = workshop.job(**BY_ANSWERS)
    loop, plan = _set_up(job)
    worst, passes, chance = _worst(job, plan), list[tuple[int, ...]](), list[torch.Tensor]()
    before = {name: weight.clone() for name, weight in loop.model.state_dict().items()}

    def embed(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.Embedding) and torch.is_inference_mode_enabled():
            assert all(parameter.grad is None for parameter in loop.model.parameters())
            passes.append(tuple(inputs[0].shape))
            chance.append(torch.get_rng_state())

    handle = register_module_forward_pre_hook(embed)
    try:
        done = rehearse(loop, job.prepared.rows("train"), worst)
    finally:
        handle.remove()
    (asked,) = worst.answers
    assert asked.rows == len(job.prepared.rows("validation")) and asked.longest == job.prepared.rows("validation").lengths.max() + 12
    read, written = (sum(rows * width for rows, width in passes if (width == 1) == writes) for writes in (False, True))
    assert read == asked.rows * (asked.longest - asked.most_tokens)
    assert (asked.rows, 1) in passes and written < asked.rows * asked.most_tokens
    assert torch.equal(torch.get_rng_state(), chance[0])
    assert all(torch.equal(weight, before[name]) for name, weight in loop.model.state_dict().items())
    assert done.answers_seconds > 0


def test_answers_that_have_no_memory_are_found_out_before_the_first_step(workshop: Workshop) -> None:
    def embed(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.Embedding) and torch.is_inference_mode_enabled():
            torch.empty(2**60, dtype=torch.uint8)

    job = workshop.job(**BY_ANSWERS)
    handle = register_module_forward_pre_hook(embed)
    try:
        with pytest.raises(PlanRefused, match="was tried and is out of memory"):
            train(job)
    finally:
        handle.remove()
    assert not job.folder.metrics.exists()


def test_the_run_tells_what_the_worst_case_took_beside_what_was_planned(workshop: Workshop) -> None:
    job = workshop.job(training={"max_steps": 1})
    train(job)
    (rehearsed,) = [record for record in jsonl.records(job.folder.events) if record["event"] == "rehearsed"]
    assert rehearsed["planned_bytes"] == json.loads(job.folder.plan.read_text())["memory"]["peak_bytes"]
    assert rehearsed["peak_bytes"] > 0


@contextmanager
def memory_for(tokens: int) -> Iterator[None]:
    """A machine on which a larger micro batch is out of memory: an embedding of more tokens asks torch for an exabyte besides."""

    def embed(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled() and isinstance(module, nn.Embedding) and inputs[0].numel() > tokens:
            torch.empty(2**60, dtype=torch.uint8)

    handle = register_module_forward_pre_hook(embed)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("micro_batch_size", ["auto", 4])
def test_out_of_memory_leads_to_smaller_micro_batches_and_the_same_update(workshop: Workshop, micro_batch_size: int | str) -> None:
    sections: dict[str, Any] = {"training": {"micro_batch_size": micro_batch_size, "max_steps": 3}, "data": {"packing": "bins"}}
    whole, short = workshop.job("whole", **sections), workshop.job("short", **sections)
    longest = whole.plan.facts.task.workload.longest
    train(whole)
    with memory_for(longest + 5):
        train(short)
    (retried,) = [record for record in jsonl.records(short.folder.events) if record["event"] == "out_of_memory"][-1:]
    assert "can't allocate memory" in retried["reason"]
    assert retried["next"]["tokens"] <= longest + 5
    assert json.loads(short.folder.plan.read_text())["sizes"]["tokens"] == retried["next"]["tokens"]
    weights = [load_file(job.folder.adapter / "adapter_model.safetensors") for job in (whole, short)]
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], rtol=1e-4, atol=1e-6)


def test_what_failed_is_the_plan_that_was_tried_not_the_one_that_was_predicted(workshop: Workshop) -> None:
    """The plan predicts fused layers; the model turns out to run its own, and is out of memory so."""
    job = workshop.job(training={"micro_batch_size": "auto", "max_steps": 1}, lora={"dropout": 0.0})
    wrong = replace(job, plan=job.plan.with_engine("packed"))
    with memory_for(job.plan.facts.task.workload.longest + 5):
        done = train(wrong)
    assert done.plan.setup.engine == "fused"
    tried = [record["tried"]["tokens"] for record in jsonl.records(job.folder.events) if record["event"] == "out_of_memory"]
    assert tried == sorted(set(tried), reverse=True)  # nothing is tried twice, and always less


def test_a_plan_for_another_kind_of_device_is_not_trained(workshop: Workshop) -> None:
    job = workshop.job()
    task = job.plan.facts.task
    elsewhere = make(replace(job.plan.facts, task=replace(task, place=place_of("L4", job.plan.facts.host))))
    with pytest.raises(PlanRefused, match=r"the plan is for NVIDIA L4, and torch .* sees only a cpu here"):
        train(replace(job, plan=elsewhere))


def test_where_one_row_is_too_much_the_run_is_refused(workshop: Workshop) -> None:
    job = workshop.job()
    with memory_for(2), pytest.raises(PlanRefused, match="was tried and is out of memory"):
        train(job)
    assert not job.folder.adapter.exists()

"""Memory that runs short in the middle of a run: the same updates go on in smaller micro batches."""

import contextlib
import json
import os
import re
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from luthier.core import jsonl
from luthier.core.progress import Advance
from luthier.core.signals import Interrupted, ending_at_once
from luthier.runs.store import RunFolder
from luthier.train.run import TrainingJob, train
from tests.train.workshop import Workshop

BLOCK, FREE = 1 << 18, 8 << 20
FILLING: list[torch.Tensor] = []
LONG = " ".join(["a long row, so that a micro batch of eight takes much more memory than one of two"] * 12)


class After:
    """Progress that does something once a step is done."""

    def __init__(self, step: int, then: Callable[[], None]) -> None:
        self.step, self.then = step, then

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        def advance(done: int, text: str) -> None:
            if name == "training" and done == self.step:
                self.step = 0
                self.then()

        yield advance

    def say(self, line: str) -> None:
        """Once memory was short there is more again: what the limit counts is addresses, of which freed memory keeps its own."""
        if line.startswith("out of memory"):
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def in_a_child(work: Callable[[], object]) -> None:
    """Do it in a process of its own, whose memory may be limited; fails where the child does."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        try:
            work()
            os._exit(0)
        except BaseException:
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def leave(free: int) -> list[torch.Tensor]:
    """Fill what this process holds of free memory, and let it have so many bytes more: what fills it."""
    size = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (size, resource.RLIM_INFINITY))
    filling = []
    with contextlib.suppress(RuntimeError):
        while True:
            filling.append(torch.empty(BLOCK, dtype=torch.uint8))
    resource.setrlimit(resource.RLIMIT_DATA, (size + free, resource.RLIM_INFINITY))
    return filling


def roomy(workshop: Workshop, name: str) -> TrainingJob:
    """Rows of some thousand tokens, eight in a micro batch."""
    path = workshop.folder / "long.jsonl"
    if not path.exists():
        for place in range(16):
            turns = [{"role": "user", "content": f"{place} {LONG}"}, {"role": "assistant", "content": "yes " * (50 + place)}]
            jsonl.append(path, {"messages": turns})
    data = {"sources": [{"path": str(path)}], "packing": "off", "split": {"train": 1.0, "validation": 0, "test": 0}}
    return workshop.job(name, data=data, training={"micro_batch_size": 8, "global_batch_size": 8, "max_steps": 4})


def records(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [record for record in jsonl.records(folder.events) if record["event"] == kind]


def steps(folder: RunFolder) -> list[tuple[int, float, int]]:
    return [(line["step"], line["loss"], line["supervised_tokens"]) for line in jsonl.records(folder.metrics) if line["kind"] == "train"]


def test_a_step_that_does_not_fit_any_more_is_made_in_smaller_micro_batches(workshop: Workshop) -> None:
    whole, short = roomy(workshop, "whole"), roomy(workshop, "short")
    train(whole)
    in_a_child(lambda: train(replace(short, progress=After(2, lambda: FILLING.extend(leave(FREE))))))
    (failed,) = records(short.folder, "out_of_memory")
    assert failed["next"]["tokens"] < failed["tried"]["tokens"]
    assert failed["used_bytes"] > 0 < failed["planned_bytes"]
    (resumed,) = records(short.folder, "resumed")
    assert resumed["step"] in (2, 3)  # one step more where the heap has holes that the filling did not find
    assert json.loads(short.folder.plan.read_text())["sizes"] == failed["next"]
    assert [(step, targets) for step, _, targets in steps(short.folder)] == [(step, targets) for step, _, targets in steps(whole.folder)]
    assert [loss for _, loss, _ in steps(short.folder)] == pytest.approx([loss for _, loss, _ in steps(whole.folder)], rel=1e-5)


def test_a_signal_that_comes_while_memory_is_short_is_not_forgotten(workshop: Workshop) -> None:
    job = workshop.job()
    embedded = 0

    def embed(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal embedded
        if isinstance(module, nn.Embedding) and torch.is_grad_enabled():
            embedded += 1
            if embedded == 8:  # the rehearsal has two, a step two
                os.kill(os.getpid(), signal.SIGTERM)
                torch.empty(2**60, dtype=torch.uint8)

    handle = register_module_forward_pre_hook(embed)
    try:
        with pytest.raises(Interrupted) as ended, ending_at_once():
            train(job)
    finally:
        handle.remove()
    assert ended.value.exit_code == 128 + signal.SIGTERM
    assert job.folder.saved_steps[0] == 2

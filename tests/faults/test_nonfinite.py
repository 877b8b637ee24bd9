"""What is not finite is never applied: the run stops, or goes on without it, and no adapter that is called finished holds it (trap 31)."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.core import jsonl
from luthier.core.errors import NonFiniteError
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.checkpoint import State
from luthier.train.loop import Loop, fit
from luthier.train.run import TrainingJob, _set_up
from tests.train.workshop import Workshop

WEIGHTS = "adapter.safetensors"


def poisoned(job: TrainingJob, steps: set[int]) -> Loop:
    """The job's loop, in whose steps of these numbers nothing is finite."""
    ready, _ = _set_up(job)

    def poison(module: nn.Module, inputs: object, hidden: torch.Tensor) -> torch.Tensor:
        computed = len([line for line in records(job.folder.metrics) if line["kind"] == "train"])
        return hidden * math.nan if module.training and computed + 1 in steps else hidden

    ready.model.get_base_model().get_decoder().norm.register_forward_hook(poison)
    return ready


def records(path: Path) -> list[dict[str, Any]]:
    return list(jsonl.records(path)) if path.exists() else []


def events(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [record for record in records(folder.events) if record["event"] == kind]


def skipping(workshop: Workshop, name: str = "run") -> TrainingJob:
    return workshop.job(name, training={"on_nonfinite": "skip", "max_steps": 16}, checkpoints={"keep": 9, "eval_steps": 8})


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in loop.trained.items()}


def test_a_step_that_is_skipped_changes_nothing_and_names_its_rows(workshop: Workshop) -> None:
    job = skipping(workshop)
    assert fit(poisoned(job, {6, 7, 8}), State()).step == 16
    assert [event["step"] for event in events(job.folder, "nonfinite")] == [6, 7, 8]
    assert all(len(event["origins"]) == 4 for event in events(job.folder, "nonfinite"))
    of_step = {path.name: path / WEIGHTS for path in job.folder.checkpoints.iterdir()}
    assert of_step["step-000008"].read_bytes() == of_step["step-000005"].read_bytes()
    assert of_step["step-000016"].read_bytes() != of_step["step-000008"].read_bytes()
    assert [line["loss"] is None for line in records(job.folder.metrics) if line["kind"] == "train"] == [
        step in (6, 7, 8) for step in range(1, 17)
    ]


def test_after_three_in_a_row_the_last_checkpoints_weights_are_taken_again(workshop: Workshop) -> None:
    job = skipping(workshop)
    loop = poisoned(job, {7, 8, 9, 10})
    state = fit(loop, State())
    assert [(event["step"], event["to"]) for event in events(job.folder, "rolled_back")] == [(10, 5)]
    weights_at = {step: (job.folder.checkpoint(step) / WEIGHTS).read_bytes() for step in (5, 8, 10)}
    assert weights_at[10] == weights_at[5] != weights_at[8]  # where 8 was validated: it holds the steps from which it all began
    assert (state.step, state.rolled_back, state.skipped) == (16, True, 0)


def test_what_is_not_finite_after_going_back_either_stops_the_run(workshop: Workshop) -> None:
    job = skipping(workshop)
    loop = poisoned(job, set(range(7, 99)))
    with pytest.raises(NonFiniteError, match=r"step 14, rows .*rows-30\.jsonl"):
        fit(loop, State())
    assert events(job.folder, "rolled_back")
    assert all(weight.isfinite().all() for weight in weights(loop).values())
    assert not job.folder.adapter.exists()


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(workshop: Workshop) -> None:
    job = skipping(workshop)
    with pytest.raises(NonFiniteError, match="step 4"):
        fit(poisoned(job, {1, 2, 3, 4}), State())


def test_a_run_that_skipped_is_resumed_as_it_went_on(workshop: Workshop) -> None:
    whole, broken = (skipping(workshop, name) for name in ("whole", "broken"))
    bad = {7, 8}
    fit(poisoned(whole, bad), State())
    with pytest.raises(StopIteration):
        stop_after(poisoned(broken, bad), 8)
    again = poisoned(broken, bad)
    fit(again, checkpoint.resume(broken.folder, again.trained, again.optimizer))
    for file in ("adapter.safetensors", "optimizer.safetensors", "state.json"):
        assert (whole.folder.checkpoint(16) / file).read_bytes() == (broken.folder.checkpoint(16) / file).read_bytes()


def stop_after(loop: Loop, step: int) -> None:
    """Train until this step's line is written, and no further."""

    def origins(rows: object) -> list[str]:
        if len(events(loop.folder, "nonfinite")) == step - 7:
            raise StopIteration
        return []

    object.__setattr__(loop, "origins", origins)
    fit(loop, State())

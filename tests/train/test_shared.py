"""Runs that share one loaded base, and leave off at a step and go on, are bit for bit the runs that had a process each."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.core import jsonl
from luthier.model import load
from luthier.model.share import keeping_a_base
from luthier.plan.resident import resident_bytes
from luthier.runs import control
from luthier.runs.status import status
from luthier.runs.store import RunFolder
from luthier.train import run as training
from luthier.train.run import TrainingJob, train
from tests.train.recorded import metrics
from tests.train.workshop import Workshop

TRIALS: Mapping[str, Mapping[str, Any]] = {
    "small": {"lora": {"r": 2}},
    "large": {"lora": {"r": 16, "alpha": 64}},
    "dora": {"lora": {"use_dora": True}},
    "recomputed": {"training": {"max_steps": 3, "gradient_checkpointing": True}},
    "unpacked": {"data": {"packing": "off"}},
    "again": {"lora": {"r": 2}},
}
BASES: Mapping[str, Mapping[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "nf4": {"dtype": "bfloat16", "quantization": "nf4"},
    "mixture": {"base": "mixture"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
}
SHORT: Mapping[str, Any] = {"training": {"max_steps": 3}, "checkpoints": {"eval_steps": 2, "save_steps": 3}}


def weights(run: RunFolder) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().view(torch.uint8).numpy().tobytes()
        for name, tensor in load_file(run.adapter / "adapter_model.safetensors").items()
    }


@pytest.mark.parametrize("base", ["float32", *(pytest.param(base, marks=pytest.mark.slow) for base in BASES if base != "float32")])
def test_an_adapter_on_a_shared_base_is_bitwise_the_one_on_its_own(workshop: Workshop, base: str) -> None:
    def job(name: str, trial: str) -> TrainingJob:
        return workshop.job(f"{name}-{trial}", model=BASES[base], **{**SHORT, **TRIALS[trial]})

    trials = [name for name in TRIALS if not (base == "mixture" and name == "dora")]  # which PEFT refuses
    with keeping_a_base():
        for trial in trials:
            train(job("shared", trial))
    for trial in trials:
        alone, shared = job("alone", trial), RunFolder(workshop.folder / "runs" / f"shared-{trial}")
        train(alone)
        assert weights(alone.folder) == weights(shared), trial
        assert metrics(alone.folder) == metrics(shared), trial


def test_a_base_is_loaded_once_for_runs_that_leave_it_as_it_is(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def counted(*given: Any) -> Any:
        loaded.append(given[0])
        return load.load_model(*given)

    monkeypatch.setattr(training, "load_model", counted)
    with keeping_a_base():
        for name in ("one", "two"):
            train(workshop.job(name))
        assert len(loaded) == 1 and resident_bytes() > 100_000
        train(workshop.job("other", model={"base": "mixture"}))
        train(workshop.job("whole", lora="none"))
        assert len(loaded) == 3
    assert resident_bytes() == 0
    train(workshop.job("after"))
    assert len(loaded) == 4


def test_a_run_leaves_off_after_the_step_asked_for_and_goes_on_as_if_it_had_not(workshop: Workshop) -> None:
    whole, job = workshop.job("whole"), workshop.job("in turns")
    train(whole)
    for step in (6, 6, 9):
        with control.leaving_off_after(job.folder, step):
            assert train(job).last_step == step
        stands = status(job.folder)
        assert (stands.state, stands.step, stands.why, job.folder.finished) == (
            "stopped",
            step,
            f"after step {step}, as a sweep asked",
            False,
        )
        assert step in job.folder.saved_steps
    assert train(job).last_step == 12
    assert weights(job.folder) == weights(whole.folder)
    assert metrics(job.folder) == metrics(whole.folder)
    assert [event["step"] for event in jsonl.records(job.folder.events) if event["event"] == "paused"] == [6, 6, 9]


def test_a_step_beyond_the_last_asks_for_nothing(workshop: Workshop) -> None:
    job = workshop.job()
    with control.leaving_off_after(job.folder, 99):
        assert train(job).last_step == 12
    assert job.folder.finished and not job.folder.until.exists()

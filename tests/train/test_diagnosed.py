"""Runs of the tiny model that were made to overfit, to stand still, to diverge: what they are told when they end, and what they keep."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core import jsonl
from luthier.train.run import TrainingJob, train
from luthier.watch.rules import found_in
from luthier.watch.rules.case import Case, look
from luthier.watch.series import read
from tests.train.workshop import Workshop, killed_in_step

ANSWERS = ["Paris", "yes", "four", "sunny", "helpful", "red", "blue", "north", "south", "early", "late"]
AT_ONCE = {"global_batch_size": 16, "micro_batch_size": 16}


def rows(folder: Path, num: int, answer: Callable[[random.Random], str], validation: float = 0.4) -> dict[str, Any]:
    """Questions that tell nothing of their answers."""
    chance, path = random.Random(1), folder / f"rows-{num}.jsonl"
    for _ in range(num):
        question, said = f"Question {chance.randrange(10**6)}?", answer(chance)
        jsonl.append(path, {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": said}]})
    return {
        "sources": [{"path": str(path)}],
        "split": {"train": 1 - validation, "validation": validation, "test": 0},
        "split_method": "exact",
    }


def case(job: TrainingJob) -> Case:
    return look(job.folder, job.recipe, read(job.folder.metrics), jsonl.salvage(job.folder.events).records)


def codes(job: TrainingJob) -> set[str]:
    """What is found of the run, but for what the speed of this machine has to do with."""
    found = {finding.code for finding in found_in(case(job))}
    return found - {"slower-than-planned", "device-idle", "data-bound"}


def findings(job: TrainingJob) -> list[str]:
    return [record["code"] for record in jsonl.records(job.folder.events) if record["event"] == "finding"]


@pytest.mark.slow
def test_a_run_that_learns_its_rows_by_heart_is_told_so(workshop: Workshop) -> None:
    data = rows(workshop.folder, 120, lambda chance: " ".join(chance.choice(ANSWERS) for _ in range(4)))
    training = {**AT_ONCE, "max_steps": 300, "learning_rate": 1e-2, "lr_scheduler": "constant"}
    adapter = {"r": 16, "alpha": 32, "dropout": 0.0}
    job = workshop.job("heart", data=data, lora=adapter, training=training, checkpoints={"eval_steps": 20, "save_steps": 300})
    train(job)
    assert codes(job) == {"overfitting"}
    assert "overfitting" in findings(job)


@pytest.mark.slow
def test_a_run_whose_answers_are_tossed_stands_still_and_is_told_so(workshop: Workshop) -> None:
    data = rows(workshop.folder, 4000, lambda chance: chance.choice(["yes", "no"]), validation=0.05)
    training = {**AT_ONCE, "max_steps": 220, "learning_rate": 1e-2, "lr_scheduler": "linear"}
    job = workshop.job("tossed", data=data, training=training, checkpoints={"eval_steps": 20, "save_steps": 220})
    train(job)
    assert codes(job) == {"plateau"}


@pytest.mark.slow
def test_a_run_at_a_rate_that_no_weights_bear_diverges_and_is_told_so(workshop: Workshop) -> None:
    data = rows(workshop.folder, 120, lambda chance: " ".join(chance.choice(ANSWERS) for _ in range(4)))
    climbing = {"max_steps": 120, "learning_rate": 1.0, "lr_scheduler": "constant", "warmup_steps": 110, "max_grad_norm": 0}
    job = workshop.job("gone", data=data, lora="none", training={**AT_ONCE, **climbing}, checkpoints={"eval_steps": 60, "save_steps": 120})
    train(job)
    assert "diverged" in codes(job) <= {"diverged", "gradient-large", "spikes"}
    (told,) = [record for record in jsonl.records(job.folder.events) if record.get("code") == "diverged"]
    assert told["changes"][0]["path"] == "training.learning_rate"


def test_what_is_found_at_the_end_is_said_and_kept_once_however_often_the_run_ends(workshop: Workshop) -> None:
    job = workshop.job("masked")
    killed_in_step(job, 8)
    lines = [json.loads(line) for line in job.folder.metrics.read_text().splitlines()]
    lines[0]["supervised_tokens"] = 0  # as a step whose loss was of nothing would have left it
    job.folder.metrics.write_text("".join(jsonl.dumps(line) + "\n" for line in lines))
    train(job)
    assert findings(job).count("masked-to-nothing") == 1
    train(job)
    assert findings(job).count("masked-to-nothing") == 1


def test_a_folder_without_anything_or_with_damaged_files_is_found_nothing_of(workshop: Workshop) -> None:
    job = workshop.job("empty")
    assert found_in(case(job)) == ()
    for path in (job.folder.plan, job.folder.metrics, job.folder.ranks, job.folder.events, job.folder.evaluation("run") / "scores.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'\x00{"step": 1}\n[[[\n{"steps": {}}')
    job.folder.validations.mkdir()
    job.folder.validation(1).write_bytes(b"\x93NUMPY")
    assert found_in(case(job)) == ()

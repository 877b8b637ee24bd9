"""What the loop records, when it stops, and which weights it leaves."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.core import jsonl
from luthier.core.errors import NonFiniteError, RunError
from luthier.runs.store import RunFolder
from luthier.train.checkpoint import State
from luthier.train.loop import Loop, fit
from luthier.train.run import TrainingJob, _set_up, train
from tests.train.workshop import Workshop

KEYS = [
    *("step", "epoch", "kind", "loss", "learning_rate", "grad_norm", "tokens", "supervised_tokens", "tokens_per_second"),
    *("seconds", "data_seconds", "memory_bytes", "device_utilization"),
]


def lines(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [record for record in jsonl.records(run.metrics) if record["kind"] == kind]


def events(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [record for record in jsonl.records(run.events) if record["event"] == kind]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter.safetensors")


def test_every_step_and_validation_is_one_line_with_the_same_keys(workshop: Workshop) -> None:
    job = workshop.job()
    train(job)
    records = list(jsonl.records(job.folder.metrics))
    assert all(list(record) == KEYS for record in records)
    assert [record["step"] for record in lines(job.folder, "train")] == list(range(1, 13))
    assert [record["step"] for record in lines(job.folder, "validation")] == [6, 12]
    assert [record["step"] for record in events(job.folder, "saved")] == [5, 6, 10, 12]
    rows = job.prepared.rows("train")
    assert sum(record["tokens"] for record in lines(job.folder, "train")) == 2 * rows.lengths.sum()
    assert sum(record["supervised_tokens"] for record in lines(job.folder, "train")) == 2 * rows.num_supervised.sum()


def test_training_stops_when_validation_no_longer_improves_and_the_best_becomes_the_adapter(workshop: Workshop) -> None:
    checkpoints = {"eval_steps": 1, "save_steps": 50, "early_stopping_patience": 2, "early_stopping_min_delta": 0.02, "keep": 1}
    job = workshop.job(training={"max_steps": 60, "learning_rate": 0.3}, checkpoints=checkpoints)
    result = train(job)
    losses = [record["loss"] for record in lines(job.folder, "validation")]
    assert result.best is not None
    assert result.last_step == len(losses) == result.best.step + 2 < 60
    assert losses[result.best.step - 1] == result.best.value
    assert result.best.value < min(losses[: result.best.step - 1], default=math.inf) - 0.02
    assert result.final_step == result.best.step
    assert events(job.folder, "finished")[0]["final"] == "best"
    from safetensors.torch import load_file

    final, best = load_file(job.folder.adapter / "adapter_model.safetensors"), weights(job.folder.checkpoint(result.best.step))
    assert all(torch.equal(tensor, best[name.replace(".weight", ".default.weight")]) for name, tensor in final.items())
    # run again, it knows that it had stopped
    assert train(job).last_step == result.last_step
    assert len(lines(job.folder, "validation")) == len(losses)


def test_the_best_may_be_chosen_by_a_metric_which_is_better_when_higher(workshop: Workshop) -> None:
    scores = iter([0.2, 0.7, 0.7, 0.1])

    def score(model: nn.Module, step: int) -> dict[str, float]:
        assert not model.training
        return {"answers.exact": next(scores)}

    tasks = {"tasks": [{"name": "answers", "split": "validation"}]}
    job = workshop.job(checkpoints={"eval_steps": 3, "best_by": "answers.exact"}, evaluation=tasks)
    result = train(replace(job, score=score))
    assert result.best is not None
    assert (result.best.step, result.best.value, result.final_step) == (6, 0.7, 6)
    assert [record["scores"]["answers.exact"] for record in events(job.folder, "scored")] == [0.2, 0.7, 0.7, 0.1]


def test_a_metric_that_the_task_does_not_give_is_named_with_those_it_gives(workshop: Workshop) -> None:
    tasks = {"tasks": [{"name": "answers", "split": "validation"}]}
    job = workshop.job(checkpoints={"eval_steps": 3, "best_by": "answers.exact"}, evaluation=tasks)
    with pytest.raises(RunError, match=r"(?s)'answers\.exact' was not measured.*measured were answers\.truncated"):
        train(replace(job, score=lambda *_: {"answers.truncated": 0.5}))


def test_the_last_weights_become_the_adapter_where_the_recipe_says_so(workshop: Workshop) -> None:
    job = workshop.job(training={"max_steps": 8, "learning_rate": 0.5}, checkpoints={"eval_steps": 1, "final": "last"})
    result = train(job)
    assert result.best is not None
    assert result.final_step == 8 > result.best.step


def poisoned(job: TrainingJob, at_step: int) -> Loop:
    """The job's loop over a model whose loss is not a number from this step on."""
    loop, _ = _set_up(job)
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1

    def poison(module: nn.Module, inputs: object, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * math.nan if module.training and done >= at_step - 1 else hidden

    loop.optimizer.register_step_post_hook(count)
    loop.model.get_base_model().get_decoder().norm.register_forward_hook(poison)
    return loop


def test_a_loss_that_is_not_finite_stops_the_run_with_its_weights_untouched(workshop: Workshop) -> None:
    job = workshop.job()
    loop = poisoned(job, at_step=7)
    with pytest.raises(NonFiniteError, match=r"step 7, rows .*rows-30\.jsonl:\d+"):
        fit(loop, State())
    assert lines(job.folder, "train")[-1] | {"loss": None, "grad_norm": None} == lines(job.folder, "train")[-1]
    event = events(job.folder, "nonfinite")[0]
    assert (event["step"], event["loss"], len(event["rows"]), len(event["origins"])) == (7, None, 4, 4)
    saved = weights(job.folder.checkpoint(6))
    now = loop.trained
    assert all(torch.equal(now[name], saved[name]) for name in saved)
    assert not job.folder.adapter.exists()
    assert not job.folder.finished


def test_a_validation_loss_that_is_not_finite_is_no_best(workshop: Workshop) -> None:
    job = workshop.job()
    loop = _set_up(job)[0]
    hook = lambda module, inputs, hidden: hidden if module.training else hidden * math.inf  # noqa: E731
    loop.model.get_base_model().get_decoder().norm.register_forward_hook(hook)
    with pytest.raises(NonFiniteError, match="validation loss"):
        fit(loop, State())
    assert lines(job.folder, "validation")[0]["loss"] is None
    assert not job.folder.pointer("best").exists()


def test_without_validation_rows_the_last_weights_are_final(workshop: Workshop) -> None:
    job = workshop.job(data={"split": {"train": 1.0, "validation": 0, "test": 0}})
    result = train(job)
    assert (result.best, result.final_step) == (None, 12)
    assert lines(job.folder, "validation") == []


@pytest.mark.parametrize(("minutes", "often"), [("off", False), (60, False), (1e-9, True)])
def test_a_checkpoint_is_saved_when_its_minutes_are_over(workshop: Workshop, minutes: float | str, often: bool) -> None:
    job = workshop.job(checkpoints={"save_steps": 12, "save_minutes": minutes})
    train(job)
    steps = {event["step"] for event in events(job.folder, "saved")}
    assert steps == set(range(1, 13)) if often else steps <= {6, 12}

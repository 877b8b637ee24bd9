"""A process killed before any file operation of a save leaves whole checkpoints, and the newest good one is among them (trap 35)."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from luthier.core import files, jsonl
from luthier.model.place import trained_of
from luthier.recipe.schema import Training
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.card import Origin
from luthier.train.checkpoint import Best, State
from luthier.train.final import save_final
from luthier.train.optim import make_optimizer
from luthier.train.run import TrainingJob, _set_up
from luthier.train.step import train_step
from tests.faults.harness import Start, Starter, killed_before_change, write_recipe
from tests.train.conftest import workshop
from tests.train.workshop import FLOAT32, Workshop, in_batches, ragged_rows, tiny_model

__all__ = ["workshop"]


class Trainee:
    """A model after each of three steps, of which the first two are saved."""

    def __init__(self, folder: Path) -> None:
        self.run = RunFolder(folder / "run")
        self.run.path.mkdir(parents=True)
        self.run.recipe.write_text("name: run\n")
        self.model: nn.Module = tiny_model().train()
        self.trained = trained_of(self.model)
        self.optimizer = make_optimizer(self.trained, Training(learning_rate=1e-2))
        self.weights: dict[int, torch.Tensor] = {}
        for step in (1, 2, 3):
            train_step(self.model, self.optimizer, in_batches(ragged_rows(), 8), precision=FLOAT32, max_norm=1.0, seeds=(0, step))
            self.weights[step] = self.flat(self.model)
            self.run.metric({"step": step, "kind": "train"})
            if step < 3:
                self.save(step)

    def save(self, step: int, **changed: int) -> None:
        checkpoint.save(self.run, State(step=step, best=Best(step=step, value=1.0), **changed), self.trained, self.optimizer, keep=1)

    def resumed(self) -> tuple[State, torch.Tensor]:
        """What a new process makes of the folder."""
        model = tiny_model().train()
        return checkpoint.resume(self.run, trained_of(model), make_optimizer(trained_of(model), Training(learning_rate=1e-2))), self.flat(
            model
        )

    @staticmethod
    def flat(model: nn.Module) -> torch.Tensor:
        return torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])

    def names(self) -> list[str]:
        return sorted(path.name for path in self.run.checkpoints.iterdir())

    def damaged(self) -> bool:
        return any(record["event"] == "damaged" for record in jsonl.salvage(self.run.events).records)


@pytest.fixture(scope="module")
def began(tmp_path_factory: pytest.TempPathFactory) -> Trainee:
    return Trainee(tmp_path_factory.mktemp("trainee"))


@pytest.fixture
def trainee(began: Trainee) -> Iterator[Trainee]:
    """As it was before the test."""
    kept = began.run.path.with_name("kept")
    shutil.copytree(began.run.path, kept)
    yield began
    shutil.rmtree(began.run.path)
    kept.rename(began.run.path)


def every_kill(folder: Path, work: Callable[[], object]) -> Iterator[int]:
    """Kill the work before each of its file operations in turn, and leave the folder as that left it; at the next, as it was."""
    kept = folder.with_name("before")
    shutil.copytree(folder, kept)
    for number in itertools.count(1):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        if not killed_before_change(number, folder, work):
            break
        yield number
    shutil.rmtree(kept)


def test_a_save_killed_anywhere_leaves_the_one_before_or_itself_whole(trainee: Trainee) -> None:
    reached = []
    for _ in every_kill(trainee.run.path, lambda: trainee.save(3)):
        state, weights = trainee.resumed()
        assert torch.equal(weights, trainee.weights[state.step])
        assert trainee.names()[-1] == f"step-{state.step:06d}"  # and no .part
        assert not trainee.damaged()
        assert json.loads(trainee.run.pointer("latest").read_text())["step"] == state.step
        reached.append(state.step)
    assert len(reached) > 15
    assert reached == sorted(reached)
    assert set(reached) == {2, 3}


def test_a_save_of_a_step_that_is_saved_already_never_loses_it(trainee: Trainee) -> None:
    trainee.save(3)
    seen = set()
    for _ in every_kill(trainee.run.path, lambda: trainee.save(3, validated=3)):
        state, weights = trainee.resumed()
        assert state.step == 3
        assert torch.equal(weights, trainee.weights[3])
        assert not trainee.damaged()
        seen.add(state.validated)
    assert seen == {0, 3}


def test_a_resume_killed_anywhere_is_made_up_for_by_the_next(trainee: Trainee) -> None:
    shutil.copytree(trainee.run.checkpoint(2), trainee.run.checkpoint(3))  # which makes no checkpoint of step 3
    kills = 0
    for _ in every_kill(trainee.run.path, trainee.resumed):
        assert trainee.resumed()[0].step == 2
        assert trainee.names() == ["step-000002", "step-000003.damaged"]
        assert [record["step"] for record in jsonl.records(trainee.run.metrics)] == [1, 2]
        kills += 1
    assert kills > 5


@pytest.mark.parametrize("earlier", [False, True])
def test_an_adapter_is_whole_or_not_there_wherever_its_writing_is_killed(workshop: Workshop, earlier: bool) -> None:
    job: TrainingJob = workshop.job(training={"max_steps": 1})
    loop, _ = _set_up(job)

    def write(step: int) -> None:
        save_final(loop.placed, job.tokenizer, job.folder, Origin(recipe=job.recipe, step=step, final="last", data_hash="0"))

    def whole() -> bool:
        said = json.loads((job.folder.adapter / "provenance.json").read_text())["files"]
        return {"provenance.json", *said} == {path.name for path in job.folder.adapter.iterdir()} and all(
            files.sha256(job.folder.adapter / name) == digest["sha256"] for name, digest in said.items()
        )

    if earlier:
        write(1)
        names = json.loads((job.folder.adapter / "adapter_config.json").read_text())["target_modules"]
        assert names == sorted(names)  # not as a set gives them, in another order in each process
    found = set()
    for _ in every_kill(job.folder.path, lambda: write(2)):
        assert not job.folder.finished
        found.add(whole() if job.folder.adapter.exists() else "none")
        write(3)
        assert whole()
        assert not list(job.folder.path.glob("adapter.*"))
    assert found == ({True, "none"} if earlier else {"none"})


def test_a_disk_that_keeps_something_else_is_found_before_step_1(tmp_path: Path, processes: Starter) -> None:
    words = ("train", str(write_recipe(tmp_path)))
    ended = processes.run(Start(words=words, runs=str(tmp_path / "runs"), flip_in="optimizer.safetensors"))
    assert ended.code == 1
    assert "reads back otherwise: optimizer.safetensors is not what was written" in ended.said
    assert not (tmp_path / "runs" / "run" / "checkpoints").exists()

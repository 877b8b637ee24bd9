"""A checkpoint is whole or it is not one."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from luthier.core import jsonl
from luthier.core.errors import NonFiniteError, RunError
from luthier.recipe.schema import Training
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.checkpoint import Best, State
from luthier.train.optim import make_optimizer
from luthier.train.step import train_step
from tests.train.workshop import FLOAT32, in_batches, ragged_rows, tiny_model

FILES = ["adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


class Trainee:
    """A model that has taken some steps, and its run folder."""

    def __init__(self, folder: Path) -> None:
        self.run = RunFolder(folder)
        self.model: nn.Module = tiny_model().train()
        self.optimizer = make_optimizer(self.model, Training(learning_rate=1e-3))

    def advance(self, step: int, best: Best | None = None, keep: int = 3) -> None:
        train_step(self.model, self.optimizer, in_batches(ragged_rows(), 8), precision=FLOAT32, max_norm=1.0, seeds=(0, step))
        self.run.metric({"step": step})
        checkpoint.save(self.run, State(step=step, best=best), self.model, self.optimizer, keep=keep)

    def saved(self) -> list[str]:
        return sorted(path.name for path in self.run.checkpoints.iterdir())


@pytest.fixture
def trainee(tmp_path: Path) -> Trainee:
    return Trainee(tmp_path)


def test_weights_optimizer_and_state_come_back_bit_for_bit(trainee: Trainee) -> None:
    trainee.advance(1)
    trainee.advance(2, best=Best(step=1, value=0.1))
    other = Trainee(trainee.run.path)
    assert checkpoint.resume(other.run, other.model, other.optimizer) == State(step=2, best=Best(step=1, value=0.1))
    for one, two in zip(trainee.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)
        before, after = trainee.optimizer.state[one], other.optimizer.state[two]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_events_say_so(trainee: Trainee, name: str, damage: str) -> None:
    trainee.advance(1)
    trainee.advance(2)
    file = trainee.run.checkpoint(2) / name
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    other = Trainee(trainee.run.path)
    assert checkpoint.resume(other.run, other.model, other.optimizer).step == 1
    assert [record["checkpoint"] for record in jsonl.records(other.run.events) if record["event"] == "damaged"] == ["step-000002"]
    assert [record["step"] for record in jsonl.records(other.run.metrics)] == [1]
    assert '"step": 1' in other.run.pointer("latest").read_text()


def test_a_save_that_was_interrupted_is_not_a_checkpoint(trainee: Trainee) -> None:
    trainee.advance(1)
    shutil.copytree(trainee.run.checkpoint(1), trainee.run.checkpoints / "step-000002.part")
    other = Trainee(trainee.run.path)
    assert checkpoint.resume(other.run, other.model, other.optimizer).step == 1
    other.advance(2)
    assert other.saved() == ["step-000001", "step-000002"]


def test_without_a_checkpoint_training_starts_at_the_beginning_and_old_metrics_go(trainee: Trainee) -> None:
    trainee.run.metric({"step": 1})
    with trainee.run.metrics.open("a") as file:
        file.write('{"step": 2, "lo')
    assert checkpoint.resume(trainee.run, trainee.model, trainee.optimizer) == State()
    assert trainee.run.metrics.read_text() == ""


def test_the_newest_and_the_best_are_kept(trainee: Trainee) -> None:
    for step in range(1, 6):
        trainee.advance(step, best=Best(step=min(step, 2), value=0.5), keep=2)
    assert trainee.saved() == ["step-000002", "step-000004", "step-000005"]
    assert '"checkpoint": "step-000002"' in trainee.run.pointer("best").read_text()
    assert '"checkpoint": "step-000005"' in trainee.run.pointer("latest").read_text()


def test_a_newer_damaged_checkpoint_takes_no_place_among_the_kept(trainee: Trainee) -> None:
    best = Best(step=1, value=0.5)
    for step in (1, 2, 9):
        trainee.advance(step, best=best)
    (trainee.run.checkpoint(9) / "adapter.safetensors").write_bytes(b"")
    assert checkpoint.resume(trainee.run, trainee.model, trainee.optimizer).step == 2
    trainee.advance(3, best=best, keep=1)
    assert trainee.saved() == ["step-000001", "step-000003", "step-000009"]
    assert checkpoint.resume(trainee.run, trainee.model, trainee.optimizer).step == 3


@pytest.mark.parametrize("manifest", ['{"files": {}}', '{"files": {"state.json": null}}'])
def test_a_manifest_that_does_not_name_every_file_vouches_for_nothing(trainee: Trainee, manifest: str) -> None:
    trainee.advance(1)
    (trainee.run.checkpoint(1) / "manifest.json").write_text(manifest)
    with pytest.raises(RunError, match="does not name"):
        checkpoint.verify(trainee.run.checkpoint(1))


def test_a_best_that_is_gone_is_no_longer_the_best(trainee: Trainee) -> None:
    trainee.advance(1)
    trainee.advance(2, best=Best(step=1, value=0.5))
    (trainee.run.checkpoint(1) / "adapter.safetensors").write_bytes(b"")
    assert checkpoint.resume(trainee.run, trainee.model, trainee.optimizer) == State(step=2)
    assert not trainee.run.pointer("best").exists()


def test_weights_that_are_not_finite_are_never_saved(trainee: Trainee) -> None:
    with torch.no_grad():
        trainee.model.model.norm.weight[3] = torch.inf
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight"):
        checkpoint.save(trainee.run, State(step=1), trainee.model, trainee.optimizer, keep=1)
    assert not trainee.run.checkpoints.exists()


def test_a_checkpoint_of_another_model_is_refused(trainee: Trainee) -> None:
    trainee.advance(1)
    with pytest.raises(RunError, match="another model"):
        checkpoint.load_weights(trainee.run.checkpoint(1), tiny_model(tied=False, vocabulary=50))

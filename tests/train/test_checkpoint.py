"""A checkpoint is whole or it is not one."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from luthier.core import files, jsonl
from luthier.core.errors import NonFiniteError, RunError
from luthier.model.place import trained_of
from luthier.recipe.schema import Training
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.checkpoint import Best, Damaged, State
from luthier.train.contents import load_weights
from luthier.train.optim import make_optimizer
from luthier.train.step import train_step
from luthier.watch import rows
from tests.train.workshop import FLOAT32, in_batches, ragged_rows, tiny_model

FILES = ["adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


STATE = asdict(State(step=1, best=Best(step=1, value=0.5), scaler={"scale": 2.0, "_growth_tracker": 3}))


class Trainee:
    """A model that has taken some steps, and its run folder."""

    def __init__(self, folder: Path) -> None:
        self.run = RunFolder(folder)
        self.run.recipe.write_text("name: a\n")
        self.model: nn.Module = tiny_model().train()
        self.trained = trained_of(self.model)
        self.optimizer = make_optimizer(self.trained, Training(learning_rate=1e-3))

    def advance(self, step: int, best: Best | None = None, keep: int = 3) -> None:
        train_step(self.model, self.optimizer, in_batches(ragged_rows(), 8), precision=FLOAT32, max_norm=1.0, seeds=(0, step))
        self.run.metric({"step": step})
        checkpoint.save(self.run, State(step=step, best=best), self.trained, self.optimizer, keep=keep)

    def events(self, kind: str) -> list[dict[str, object]]:
        return [record for record in jsonl.salvage(self.run.events).records if record["event"] == kind]

    def saved(self) -> list[str]:
        return sorted(path.name for path in self.run.checkpoints.iterdir())


@pytest.fixture
def trainee(tmp_path: Path) -> Trainee:
    return Trainee(tmp_path)


def test_weights_optimizer_and_state_come_back_bit_for_bit(trainee: Trainee) -> None:
    trainee.advance(1)
    trainee.advance(2, best=Best(step=1, value=0.1))
    other = Trainee(trainee.run.path)
    assert checkpoint.resume(other.run, other.trained, other.optimizer) == State(step=2, best=Best(step=1, value=0.1))
    for one, two in zip(trainee.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)
        before, after = trainee.optimizer.state[one], other.optimizer.state[two]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "cut by a byte", "longer by a byte", "flipped", "missing", "a folder"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_events_say_so(trainee: Trainee, name: str, damage: str) -> None:
    trainee.advance(1)
    trainee.advance(2)
    file = trainee.run.checkpoint(2) / name
    content = file.read_bytes()
    file.unlink()
    match damage:
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "cut by a byte":
            file.write_bytes(content[:-1])
        case "longer by a byte":
            file.write_bytes(content + b"\n")
        case "flipped":
            file.write_bytes(flipped(content, len(content) // 2))
        case "a folder":
            file.mkdir()
    other = Trainee(trainee.run.path)
    assert checkpoint.resume(other.run, other.trained, other.optimizer).step == 1
    (event,) = other.events("damaged")
    assert (event["checkpoint"], event["now"]) == ("step-000002", "step-000002.damaged")
    assert name in str(event["why"])
    assert other.saved() == ["step-000001", "step-000002.damaged"]
    assert [record["step"] for record in jsonl.records(other.run.metrics)] == [1]
    assert '"step": 1' in other.run.pointer("latest").read_text()


@pytest.mark.parametrize("name", FILES)
def test_no_byte_of_a_checkpoint_can_change_unseen(trainee: Trainee, name: str) -> None:
    trainee.advance(1)
    file = trainee.run.checkpoint(1) / name
    content = file.read_bytes()
    for place in range(0, len(content), 1 if name.endswith("json") else len(content) // 100):
        file.write_bytes(flipped(content, place))
        with pytest.raises(Damaged, match=r"not what was written|of another (run|step)|bytes, and"):
            checkpoint.verify(file.parent)
    file.write_bytes(content)
    checkpoint.verify(file.parent)


def test_a_file_that_is_not_of_a_checkpoint_makes_it_none(trainee: Trainee) -> None:
    trainee.advance(1)
    (trainee.run.checkpoint(1) / "model.pkl").write_bytes(b"")
    with pytest.raises(Damaged, match=r"model\.pkl does not belong to it"):
        checkpoint.verify(trainee.run.checkpoint(1))


def test_a_checkpoint_of_another_run_is_passed_over(trainee: Trainee, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = Trainee(tmp_path / "b")
    other.run.recipe.write_text("name: b\n")
    other.advance(2)
    trainee.advance(1)
    shutil.copytree(other.run.checkpoint(2), trainee.run.checkpoint(2))
    assert checkpoint.resume(trainee.run, trainee.trained, trainee.optimizer).step == 1
    assert [event["why"] for event in trainee.events("damaged")] == ["its manifest is of another run"]


def test_a_checkpoint_of_another_step_is_passed_over(trainee: Trainee) -> None:
    trainee.advance(1)
    shutil.copytree(trainee.run.checkpoint(1), trainee.run.checkpoint(2))
    assert checkpoint.resume(trainee.run, trainee.trained, trainee.optimizer).step == 1
    assert [event["why"] for event in trainee.events("damaged")] == ["its manifest is of another step"]


def test_where_every_checkpoint_is_damaged_training_starts_at_the_beginning_and_says_so(trainee: Trainee) -> None:
    trainee.advance(1)
    trainee.advance(2)
    for step in (1, 2):
        (trainee.run.checkpoint(step) / "manifest.json").unlink()
    other = Trainee(trainee.run.path)
    fresh = [weight.clone() for weight in other.model.parameters()]
    assert checkpoint.resume(other.run, other.trained, other.optimizer) == State()
    assert all(torch.equal(one, two) for one, two in zip(fresh, other.model.parameters(), strict=True))
    assert len(other.events("damaged")) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * 10_000,
        '{"step": 1}',
        '{"step": "1", %s}',
        '{"step": 1.5, %s}',
        '{"step": 1, %s, "more": 0}',
        '{"step": 1, %s, "best": {"step": 1}}',
        b"\xff",
    ],
)
def test_a_whole_state_without_exactly_these_fields_is_another_versions(tmp_path: Path, text: str | bytes) -> None:
    rest = json.dumps({key: value for key, value in json.loads(files.json_text(STATE)).items() if key != "step"})[1:-1]
    file = tmp_path / "state.json"
    file.write_bytes(text if isinstance(text, bytes) else text.replace("%s", rest).encode())
    with pytest.raises(RunError, match="the version of Luthier that began it"):
        State.read(file)
    file.write_text(f'{{"step": 1, {rest}}}')
    assert State.read(file) == State(step=1, best=Best(step=1, value=0.5), scaler={"scale": 2.0, "_growth_tracker": 3})


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "latest.json", "best.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "zeros", "flipped"])
def test_no_other_file_of_the_run_folder_can_stop_a_resume(trainee: Trainee, name: str, damage: str) -> None:
    trainee.run.event("started")
    trainee.advance(1, best=Best(step=1, value=0.5))
    trainee.advance(2, best=Best(step=1, value=0.5))
    file = trainee.run.path / name
    content = file.read_bytes()
    damaged = {"empty": b"", "zeros": bytes(len(content)) + b"\n", "flipped": flipped(content, 2)}
    file.unlink()
    if damage in damaged:
        file.write_bytes(damaged[damage])
    assert checkpoint.resume(trainee.run, trainee.trained, trainee.optimizer) == State(step=2, best=Best(step=1, value=0.5))
    assert not trainee.run.finished
    assert json.loads(trainee.run.pointer("latest").read_text())["step"] == 2
    assert json.loads(trainee.run.pointer("best").read_text())["step"] == 1
    if name == "metrics.jsonl" and damage in ("zeros", "flipped"):
        assert [(event["file"], event["lines"]) for event in trainee.events("damaged")] == [(name, 1)]


def test_a_save_that_was_interrupted_is_not_a_checkpoint(trainee: Trainee) -> None:
    trainee.advance(1)
    shutil.copytree(trainee.run.checkpoint(1), trainee.run.checkpoints / "step-000002.part")
    other = Trainee(trainee.run.path)
    assert checkpoint.resume(other.run, other.trained, other.optimizer).step == 1
    other.advance(2)
    assert other.saved() == ["step-000001", "step-000002"]


def test_without_a_checkpoint_training_starts_at_the_beginning_and_old_metrics_go(trainee: Trainee) -> None:
    trainee.run.metric({"step": 1})
    with trainee.run.metrics.open("a") as file:
        file.write('{"step": 2, "lo')
    assert checkpoint.resume(trainee.run, trainee.trained, trainee.optimizer) == State()
    assert trainee.run.metrics.read_text() == ""


def test_the_line_of_a_validation_that_is_owed_goes_and_of_one_that_was_made_stays(trainee: Trainee) -> None:
    trainee.advance(1)
    for validated, lines in ((2, 3), (1, 2)):
        trainee.run.metrics.write_text('{"step": 1}\n{"step": 2, "kind": "train"}\n{"step": 2, "kind": "validation"}\n')
        checkpoint.save(trainee.run, State(step=2, validated=validated), trainee.trained, trainee.optimizer, keep=1)
        assert checkpoint.resume(trainee.run, trainee.trained, trainee.optimizer).validated == validated
        assert len(list(jsonl.records(trainee.run.metrics))) == lines


def test_what_rows_lost_and_ranks_did_after_the_checkpoint_is_forgotten_with_the_lines_of_metrics(trainee: Trainee) -> None:
    for step in (1, 2, 3):
        rows.keep(trainee.run, step, rows.Rows(losses=np.array([1.5, 0.25]), tokens=np.array([3, 1])))
        jsonl.append(trainee.run.ranks, {"step": step, "rank": 0})
    checkpoint.save(trainee.run, State(step=3, validated=2), trainee.trained, trainee.optimizer, keep=1)
    checkpoint.resume(trainee.run, trainee.trained, trainee.optimizer)
    assert trainee.run.validated_steps == (1, 2)  # the third is owed
    assert [record["step"] for record in jsonl.records(trainee.run.ranks)] == [1, 2, 3]
    (kept,) = rows.kept(trainee.run, {2, 3}).values()
    assert (kept.losses.tolist(), kept.tokens.tolist(), kept.mean) == ([1.5, 0.25], [3, 1], 0.4375)
    checkpoint.save(trainee.run, State(step=2, validated=1), trainee.trained, trainee.optimizer, keep=1)
    shutil.rmtree(trainee.run.checkpoint(3))
    checkpoint.resume(trainee.run, trainee.trained, trainee.optimizer)
    assert trainee.run.validated_steps == (1,)
    assert [record["step"] for record in jsonl.records(trainee.run.ranks)] == [1, 2]


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
    assert checkpoint.resume(trainee.run, trainee.trained, trainee.optimizer).step == 2
    trainee.advance(3, best=best, keep=1)
    assert trainee.saved() == ["step-000001", "step-000003", "step-000009.damaged"]
    assert checkpoint.resume(trainee.run, trainee.trained, trainee.optimizer).step == 3


@pytest.mark.parametrize("manifest", ['{"files": {}}', '{"files": {"state.json": null}}'])
def test_a_manifest_that_does_not_name_every_file_vouches_for_nothing(trainee: Trainee, manifest: str) -> None:
    trainee.advance(1)
    (trainee.run.checkpoint(1) / "manifest.json").write_text(manifest)
    with pytest.raises(Damaged, match=r"manifest\.json is not what was written"):
        checkpoint.verify(trainee.run.checkpoint(1))


def test_a_best_that_is_gone_is_no_longer_the_best(trainee: Trainee) -> None:
    trainee.advance(1)
    trainee.advance(2, best=Best(step=1, value=0.5))
    (trainee.run.checkpoint(1) / "adapter.safetensors").write_bytes(b"")
    assert checkpoint.resume(trainee.run, trainee.trained, trainee.optimizer) == State(step=2)
    assert not trainee.run.pointer("best").exists()
    assert [event["checkpoint"] for event in trainee.events("damaged")] == ["step-000001"]


def test_weights_that_are_not_finite_are_never_saved(trainee: Trainee) -> None:
    with torch.no_grad():
        trainee.model.model.norm.weight[3] = torch.inf
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight"):
        checkpoint.save(trainee.run, State(step=1), trainee.trained, trainee.optimizer, keep=1)
    assert not trainee.run.checkpoints.exists()


def test_a_checkpoint_of_another_model_is_refused(trainee: Trainee) -> None:
    trainee.advance(1)
    with pytest.raises(RunError, match="another model"):
        load_weights(trainee.run.checkpoint(1), trained_of(tiny_model(tied=False, vocabulary=50)))


def test_an_optimizer_of_another_model_is_refused(trainee: Trainee) -> None:
    trainee.advance(1)
    with pytest.raises(RunError, match="another model"):
        checkpoint.resume(trainee.run, trainee.trained, torch.optim.AdamW(list(trainee.model.parameters())[:1]))


def test_after_a_million_steps_the_newest_is_still_the_newest(trainee: Trainee) -> None:
    trainee.advance(999_999)
    trainee.advance(1_000_000)
    assert checkpoint.resume(trainee.run, trainee.trained, trainee.optimizer).step == 1_000_000

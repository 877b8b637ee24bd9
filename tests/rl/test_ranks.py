"""Reinforcement by several ranks is that of one: the same answers, and the same update (slow: they are started by the command)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from luthier.core import jsonl
from luthier.runs.store import RunFolder
from luthier.train.run import train
from tests.train.workshop import Workshop

ROOT = Path(__file__).parents[2]
RECIPE = """\
name: NAME
model: {base: base, dtype: float32}
lora: {r: 4, alpha: 8, init_from: runs/taught/adapter}
data: {sources: [{path: rows-30.jsonl}], split: {train: 0.8, validation: 0.2, test: 0}, split_method: exact}
rl: {rewards: {'wishes:short': 1.0}, group_size: 4, max_new_tokens: 24, kl: 0.01}
training: {max_steps: 3, global_batch_size: 12, learning_rate: 1.0e-3}
checkpoints: {eval_steps: 3, save_steps: 2}
"""
WISHES = "def short(answer, reference):\n    return 1 / (1 + len(answer))\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of two layers that some rows have taught to end its answers."""
    workshop = Workshop(tmp_path_factory.mktemp("ranks"))
    train(workshop.job("taught", lora={"dropout": 0.0}, training={"max_steps": 40}, checkpoints={"final": "last"}))
    (workshop.folder / "wishes.py").write_text(WISHES)
    return workshop.folder


@pytest.fixture(scope="module")
def alone(home: Path) -> RunFolder:
    return reinforced(home, "alone")


def reinforced(home: Path, name: str, *overrides: str) -> RunFolder:
    """A run of the command, to its end."""
    (home / f"{name}.yaml").write_text(RECIPE.replace("NAME", name))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "LUTHIER_RUNS": str(home / "runs")}
    command = [sys.executable, "-m", "luthier.cli.main", "rl", f"{name}.yaml", *overrides]
    ended = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=240)
    run = RunFolder(home / "runs" / name)
    assert ended.returncode == 0, ended.stderr + (run.log.read_text() if run.log.exists() else "")
    return run


def assert_alike(alone: RunFolder, together: RunFolder) -> None:
    """The same answers, and to rounding the same steps and weights."""
    first, second = (jsonl.salvage(run.rollout(1)).records for run in (alone, together))
    assert [each["answers"] for each in first] == [each["answers"] for each in second]
    lines = [[line for line in jsonl.salvage(run.metrics).records if line["kind"] == "train"] for run in (alone, together)]
    for one, other in zip(*lines, strict=True):
        assert other["reward"] == pytest.approx(one["reward"], rel=1e-6)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3, abs=1e-5)
        assert other["kl"] == pytest.approx(one["kl"], rel=1e-3, abs=1e-7)
        assert other["drift"] < 1e-4
    weights = [load_file(run.adapter / "adapter_model.safetensors") for run in (alone, together)]
    for name, weight in weights[0].items():
        assert (weights[1][name] - weight).norm() <= 1e-2 * weight.norm()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", ["data=2", "tensor=2", "pipeline=2", "data=2 shard=zero3"])
def test_ranks_draw_and_learn_as_one_process_does(home: Path, alone: RunFolder, layout: str) -> None:
    together = reinforced(home, layout.replace("=", "-").replace(" ", "-"), *(f"parallel.{each}" for each in layout.split()))
    assert_alike(alone, together)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_replicas_that_divide_the_model_may_have_unlike_numbers_of_micro_batches(home: Path, alone: RunFolder) -> None:
    """Answers one by one, of which one rank has one more: the other looks at nothing with it, in learning and in what `kl` is from."""
    assert_alike(alone, reinforced(home, "uneven", "parallel={data: 2, shard: zero3}", "training.micro_batch_size=1", "data.packing=off"))

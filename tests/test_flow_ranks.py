"""`luthier train recipe parallel.data=2`: real ranks, started by the command, whose end is the command's own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from luthier import flow
from luthier.core import jsonl
from luthier.core.progress import Silent
from luthier.demo import BASE
from luthier.model.adapt import load_adapter
from luthier.model.load import load_model
from luthier.recipe.schema import Model
from luthier.runs.store import RunFolder
from tests.train.workshop import Workshop

SOURCE = Path(__file__).parents[1] / "src"
RECIPE = """\
name: animals
model: {base: demo, dtype: float32}
data: {sources: [{path: rows.jsonl}], split: {train: 0.8, validation: 0.2, test: 0}, split_method: exact}
training: {max_steps: 6, global_batch_size: 5}
checkpoints: {eval_steps: 3, save_steps: 3}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    sounds = ({"prompt": f"What does cat number {number} do?", "completion": "meows " * (1 + number % 5)} for number in range(24))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(sound) + "\n" for sound in sounds))
    return tmp_path


def luthier(home: Path, *words: str) -> subprocess.Popen[str]:
    """The command, in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "LUTHIER_RUNS": str(home / "runs")}
    command = [sys.executable, "-m", "luthier.cli.main", *words]
    return subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], seconds: float = 150) -> tuple[str, str]:
    """What it printed. Where it does not end by itself, its ranks are ended with it."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        raise


def ranks_of(process: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    """The processes of its ranks."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if "RANK" in child.environ():
            yield child


def wait_for(metrics: Path, lines: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not metrics.exists() or metrics.read_text().count("\n") < lines:
        assert time.monotonic() < end, "no step was made"
        time.sleep(0.05)


def test_the_command_trains_on_two_ranks_and_shows_what_the_first_says(home: Path) -> None:
    process = luthier(home, "train", "recipe.yaml", "parallel.data=2")
    out, err = ended(process)
    run = RunFolder(home / "runs" / "animals")
    assert (process.returncode, run.finished) == (0, True), err + run.log.read_text()
    assert f"adapter: {run.adapter}" in out
    assert "step 3: validation loss" in err
    assert err.count("step 6: validation loss") == 1
    assert "training 6/6 loss" in err
    assert json.loads(run.plan.read_text())["steps"]["replicas"] == 2
    assert [line["step"] for line in jsonl.records(run.metrics) if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert not run.pid.exists()


def test_two_ranks_divide_each_matrix_answer_together_and_leave_a_plain_adapter(home: Path) -> None:
    model = Workshop(home).base()  # the demo base has three heads of keys and values, which two ranks cannot share
    tasks = "evaluation: {tasks: [{name: sounds, split: validation, max_new_tokens: 4}]}\n"
    recipe = RECIPE.replace("base: demo", f"base: {model}").replace("save_steps: 3", "save_steps: 3, best_by: sounds.exact")
    (home / "recipe.yaml").write_text(recipe + tasks)
    out, err = ended(luthier(home, "train", "recipe.yaml", "parallel.tensor=2"))
    run = RunFolder(home / "runs" / "animals")
    assert run.finished, err + run.log.read_text()
    assert f"adapter: {run.adapter}" in out
    assert [record["step"] for record in jsonl.records(run.events) if record["event"] == "scored"] == [3, 6]
    assert sorted(path.name for path in run.checkpoint(6).glob("adapter*")) == [
        f"adapter-0000{rank}-of-00002.safetensors" for rank in (1, 2)
    ]
    load_adapter(load_model(Model(base=str(model)), torch.float32, torch.device("cpu")), run.adapter)


@pytest.mark.slow
def test_two_ranks_share_the_rows_by_whose_answers_the_best_is_chosen(home: Path) -> None:
    tasks = "evaluation: {tasks: [{name: sounds, split: validation, max_new_tokens: 4}]}\n"
    (home / "recipe.yaml").write_text(RECIPE.replace("save_steps: 3", "save_steps: 3, best_by: sounds.exact") + tasks)
    scores = []
    for name, ranks in (("one", 1), ("two", 2)):
        ended(luthier(home, "train", "recipe.yaml", f"name={name}", f"parallel.data={ranks}", "model.dtype=float32"))
        events = jsonl.records(RunFolder(home / "runs" / name).events)
        scores.append([(record["step"], record["scores"]) for record in events if record["event"] == "scored"])
    assert scores[0] == scores[1] and len(scores[0]) == 2


def test_two_ranks_give_the_answers_of_one_row_for_row(home: Path) -> None:
    recipe = home / "recipe.yaml"
    recipe.write_text(RECIPE + "evaluation: {tasks: [{name: sounds, split: train, max_new_tokens: 8}]}\n")
    reports = []
    for words in ([], ["parallel: {data: 2}\n"]):
        recipe.write_text("".join([recipe.read_text(), *words]))
        process = luthier(home, "evaluate", "demo", "--recipe", "recipe.yaml", "--json")
        _, err = ended(process)
        assert process.returncode == 0, err
        assert "evaluate sounds" in err
        reports.append(flow.kept_report(home / "runs" / "evaluations" / "demo"))
        assert not (home / "runs" / "evaluations" / "demo" / "ranks").exists()
    alone, together = reports
    assert len(alone.predictions["sounds"]) == 19
    times = {"seconds"}
    assert [row.model_dump(exclude=times) for row in together.predictions["sounds"]] == [
        row.model_dump(exclude=times) for row in alone.predictions["sounds"]
    ]
    assert alone.scores.loss and together.scores.loss
    assert together.scores.loss.value == pytest.approx(alone.scores.loss.value, rel=1e-6)
    assert together.scores.latency and len(together.scores.latency.rows) == 16


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_at_once_which_goes_on_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ["training.max_steps=80", "checkpoints.save_steps=5", "checkpoints.eval_steps=40"]
    process = luthier(home, "train", "recipe.yaml", "parallel.data=2", *changes)
    run = RunFolder(home / "runs" / "animals")
    try:
        wait_for(run.metrics, 7)
        ranks = list(ranks_of(process))
        assert len(ranks) == 2
        next(rank for rank in ranks if rank.environ()["RANK"] == "1").kill()
        began = time.monotonic()
    finally:
        _, err = ended(process)
    assert time.monotonic() - began < 20
    assert process.returncode == 1
    assert "error: rank 1 ended in step" in err
    assert "Traceback" not in err
    assert psutil.wait_procs(ranks, timeout=10)[1] == []

    monkeypatch.setenv("LUTHIER_RUNS", str(home / "runs"))
    reached = [line["step"] for line in jsonl.records(run.metrics)][-1]
    assert flow.train(flow.load(home / "recipe.yaml", changes), Silent()).run == run
    events = {record["event"]: record for record in jsonl.records(run.events)}
    assert events["moved"]["changes"] == ['parallel.data: 2 → "auto"']
    assert reached - 6 <= events["resumed"]["step"] <= reached
    assert [line["step"] for line in jsonl.records(run.metrics) if line["kind"] == "train"] == list(range(1, 81))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "files"), [("data=2", 3), ("pipeline=2", 5), ("shard=zero2", 5), ("shard=zero3", 5), ("pipeline=2 shard=zero3", 9)]
)
def test_ranks_of_which_one_is_killed_are_begun_again_and_end_as_if_nothing_had_been(home: Path, layout: str, files: int) -> None:
    ranks = [f"parallel.{each}" for each in layout.split()] + (["parallel.data=2"] if "shard" in layout else [])
    changes = ["lora.dropout=0.1", "training.max_steps=30", "checkpoints.save_steps=5", "checkpoints.eval_steps=15"]
    command = ("train", "recipe.yaml", *ranks, "launch.restarts=1", *changes, "--force", "more-ranks-than-devices")
    whole = luthier(home, *command, "name=whole")
    _, err = ended(whole)
    assert whole.returncode == 0, err
    broken = luthier(home, *command, "name=broken")
    try:
        wait_for(home / "runs" / "broken" / "metrics.jsonl", 7)
        next(rank for rank in ranks_of(broken) if rank.environ()["RANK"] == "1").kill()
    finally:
        _, err = ended(broken)
    assert broken.returncode == 0, err
    one, other = (RunFolder(home / "runs" / name) for name in ("whole", "broken"))
    assert [record["number"] for record in jsonl.records(other.events) if record["event"] == "restarted"] == [1]
    saved = {path.name: path.read_bytes() for path in one.checkpoint(30).iterdir() if path.name != "manifest.json"}  # which names the run
    assert len(saved) == files
    assert {name: (other.checkpoint(30) / name).read_bytes() for name in saved} == saved
    losses = [[(line["step"], line["kind"], line["loss"]) for line in jsonl.records(run.metrics)] for run in (one, other)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_divided_stages_validate_more_rows_than_are_computed_at_once(home: Path) -> None:
    sounds = ({"prompt": f"What does cat number {number} do?", "completion": "meows " * (1 + number % 5)} for number in range(400))
    (home / "rows.jsonl").write_text("".join(json.dumps(sound) + "\n" for sound in sounds))
    split = "data.split={train: 0.2, validation: 0.8, test: 0}"
    layout = ("parallel.data=2", "parallel.pipeline=2", "parallel.shard=zero2", "--force", "more-ranks-than-devices")
    for name, changes in {"one": (), "four": layout}.items():
        process = luthier(home, "train", "recipe.yaml", f"name={name}", split, "training.max_steps=2", "checkpoints.eval_steps=2", *changes)
        _, err = ended(process)
        assert process.returncode == 0, err
    runs = [RunFolder(home / "runs" / name) for name in ("one", "four")]
    one, four = ([line["loss"] for line in jsonl.records(run.metrics) if line["kind"] == "validation"] for run in runs)
    assert four == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to", "layout"),
    [
        (signal.SIGTERM, "the command", "parallel.data=2"),
        (signal.SIGINT, "the command", "parallel.data=2"),
        (signal.SIGINT, "all that it started", "parallel.data=2"),
        (signal.SIGTERM, "the command", "parallel.pipeline=2"),
    ],
    ids=["SIGTERM", "SIGINT", "SIGINT to torchrun, which sends it to ranks that have it already", "SIGTERM to stages of a pipeline"],
)
def test_a_signal_ends_all_ranks_after_the_same_step_with_a_checkpoint(home: Path, number: signal.Signals, to: str, layout: str) -> None:
    process = luthier(home, "train", "recipe.yaml", layout, "training.max_steps=2000", "checkpoints.eval_steps=1000")
    run = RunFolder(home / "runs" / "animals")
    try:
        wait_for(run.metrics, 4)
        for receiver in (process,) if to == "the command" else psutil.Process(process.pid).children(recursive=True):
            receiver.send_signal(number)
    finally:
        _, err = ended(process)
    assert process.returncode == 128 + number
    assert re.search(rf"stopped by .*{number.name}.*: run animals is saved after step \d+ of \d+ in checkpoint step-", err)
    assert "error" not in err
    assert "Traceback" not in err  # torchrun's, for a code that is not 0, is in log.txt
    last = [line["step"] for line in jsonl.records(run.metrics)][-1]
    assert json.loads(run.pointer("latest").read_text())["step"] == last
    assert [event["step"] for event in jsonl.records(run.events) if event["event"] == "interrupted"] == [last]


@pytest.mark.slow
def test_the_ranks_do_not_outlive_the_command(home: Path) -> None:
    process = luthier(home, "train", "recipe.yaml", "parallel.data=2", "training.max_steps=2000", "checkpoints.eval_steps=1000")
    try:
        wait_for(home / "runs" / "animals" / "metrics.jsonl", 3)
        group = psutil.Process(process.pid).children(recursive=True)
        assert len(list(ranks_of(process))) == 2
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert psutil.wait_procs(group, timeout=60)[1] == []
    assert (home / "runs" / "animals" / "metrics.jsonl").read_text().count("\n") < 1000


@pytest.mark.slow
def test_the_error_of_a_rank_is_the_commands(home: Path) -> None:
    shutil.copytree(BASE, home / "base")
    (home / "base" / "model.safetensors").unlink()
    process = luthier(home, "train", "recipe.yaml", "parallel.data=2", "model.base=./base")
    _, err = ended(process)
    run = RunFolder(home / "runs" / "animals")
    assert process.returncode == 1
    message = err[err.index("error: ") :]
    assert message.startswith(f"error: {home / 'base'}: the folder has no weights\n  convert the weights")
    assert "Traceback" not in err
    assert "ModelError" in run.log.read_text()
    assert not run.progress.exists()
    assert not run.finished

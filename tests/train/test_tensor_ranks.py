"""Runs of two ranks that divide each matrix: they resume, go on undivided, answer and end together. Real processes, one group for all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.core import jsonl
from luthier.model.adapt import load_adapter
from luthier.model.load import load_model
from luthier.train.run import train
from tests.train.in_tensor_ranks import BY_METRIC, KILLED_IN
from tests.train.in_two_ranks import RESUMED_AFTER
from tests.train.recorded import metrics
from tests.train.test_ranks import ROOT, TORCHRUN, Found, assert_the_same_up_to_rounding
from tests.train.workshop import CPU, Workshop, killed_in_step


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="module")
def alone(home: Path) -> Workshop:
    """The workshop in which one process has trained first, and so prepared the rows; one run of it was killed."""
    workshop = Workshop(home)
    train(workshop.job("one whole"))
    killed_in_step(workshop.job("one-then-two"), KILLED_IN)
    workshop.job("metric", **BY_METRIC)
    return workshop


@pytest.fixture(scope="module")
def found(home: Path, alone: Workshop) -> Found:
    """What each of two ranks left after all their scenes."""
    command = [sys.executable, *TORCHRUN, "-m", "tests.train.in_tensor_ranks", str(home)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    group = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        _, told = group.communicate(timeout=200)
    finally:
        group.terminate()  # torchrun ends its ranks
        group.wait(60)
    assert group.returncode == 0, told[-4000:]
    return [json.loads((home / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_resumed_it_is_the_uninterrupted_run_bit_for_bit(alone: Workshop, found: Found) -> None:
    whole, broken = alone.job("two whole"), alone.job("two broken")
    files = sorted(path.name for path in whole.folder.checkpoint(12).glob("*.safetensors"))
    assert len(files) == 4  # each rank writes what it has
    for name in files:
        assert (whole.folder.checkpoint(12) / name).read_bytes() == (broken.folder.checkpoint(12) / name).read_bytes()
    assert metrics(whole.folder) == metrics(broken.folder)


@pytest.mark.parametrize("order", ["one-then-two", "two-then-one"])
def test_a_run_goes_on_divided_and_undivided(alone: Workshop, found: Found, order: str) -> None:
    job = alone.job(order)
    assert train(job).last_step == found[0]["resumed"] == 12
    resumed = [record["step"] for record in jsonl.records(job.folder.events) if record["event"] == "resumed"]
    assert resumed[0] == RESUMED_AFTER
    assert_the_same_up_to_rounding(metrics(alone.job("one whole").folder), metrics(job.folder))


def test_the_final_adapter_is_whole_and_loads_in_one_process(alone: Workshop, found: Found) -> None:
    one, two = (alone.job(f"{number} whole").folder.adapter for number in ("one", "two"))
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weight, weights[1][name], rtol=1e-3, atol=1e-5) for name, weight in weights[0].items())
    load_adapter(load_model(alone.recipe().model, torch.float32, CPU), two)


def test_both_ranks_answer_and_say_the_same(found: Found) -> None:
    assert found[0]["answers"] == found[1]["answers"]
    assert len(found[0]["answers"]) > 10


def test_a_signal_to_one_rank_while_both_answer_ends_both_before_the_same_token(alone: Workshop, found: Found) -> None:
    assert found[0]["a_signal_while_answering"] == found[1]["a_signal_while_answering"] == [3, "SIGTERM"]
    assert alone.job("two ended").folder.checkpoint(3).exists()

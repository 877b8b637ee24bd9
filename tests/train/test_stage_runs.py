"""A run whose layers two ranks divide: resumed, gone on with otherwise, ended, short of memory, and left as one process leaves it."""

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
from luthier.recipe.schema import Model
from luthier.train.run import train
from tests.train.in_stage_runs import BY_METRIC, FEW_BITS, FULL, KILLED_IN, answers
from tests.train.in_two_ranks import RESUMED_AFTER
from tests.train.recorded import metrics
from tests.train.test_ranks import ROOT, TORCHRUN, Found, assert_the_same_up_to_rounding
from tests.train.workshop import CPU, Workshop, killed_in_step


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="module")
def said_alone(home: Path) -> list[str]:
    """What one process says; it has done all the runs first, one of which was killed."""
    workshop = Workshop(home)
    train(workshop.job("one whole"))
    train(workshop.job("one full", **FULL))
    for kind, sections in FEW_BITS.items():
        train(workshop.job(f"one {kind}", **sections))
    killed_in_step(workshop.job("one-then-two"), KILLED_IN)
    return answers(workshop.job("one metric", **BY_METRIC))


@pytest.fixture(scope="module")
def found(home: Path, said_alone: list[str]) -> Found:
    """What each of two stages left after all their scenes."""
    command = [sys.executable, *TORCHRUN, "-m", "tests.train.in_stage_runs", str(home)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    group = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        _, told = group.communicate(timeout=200)
    finally:
        group.terminate()  # torchrun ends its ranks
        group.wait(60)
    assert group.returncode == 0, told[-4000:]
    return [json.loads((home / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def workshop(home: Path, found: Found) -> Workshop:
    """In which all runs are done."""
    return Workshop(home)


@pytest.mark.parametrize("kind", ["whole", "full", *FEW_BITS])
def test_metrics_are_those_of_one_process(workshop: Workshop, kind: str) -> None:
    sections = {"whole": {}, "full": FULL, **FEW_BITS}[kind]
    one, two = (workshop.job(f"{number} {kind}", **sections) for number in ("one", "two"))
    assert_the_same_up_to_rounding(metrics(one.folder), metrics(two.folder))


def test_resumed_it_is_the_uninterrupted_run_bit_for_bit(workshop: Workshop) -> None:
    whole, broken = workshop.job("two whole"), workshop.job("two broken")
    files = sorted(path.name for path in whole.folder.checkpoint(12).glob("*.safetensors"))
    assert len(files) == 4  # each stage writes what it has
    for name in files:
        assert (whole.folder.checkpoint(12) / name).read_bytes() == (broken.folder.checkpoint(12) / name).read_bytes()
    assert metrics(whole.folder) == metrics(broken.folder)


@pytest.mark.parametrize("order", ["one-then-two", "two-then-one"])
def test_a_run_goes_on_with_another_number_of_stages(workshop: Workshop, found: Found, order: str) -> None:
    job = workshop.job(order)
    assert train(job).last_step == found[0]["resumed"] == 12
    resumed = [record["step"] for record in jsonl.records(job.folder.events) if record["event"] == "resumed"]
    assert resumed[0] == RESUMED_AFTER
    assert_the_same_up_to_rounding(metrics(workshop.job("one whole").folder), metrics(job.folder))


def test_the_final_adapter_is_whole_and_loads_in_one_process(workshop: Workshop) -> None:
    one, two = (workshop.job(f"{number} whole").folder.adapter for number in ("one", "two"))
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weight, weights[1][name], rtol=1e-3, atol=1e-5) for name, weight in weights[0].items())
    assert (one / "adapter_config.json").read_bytes() == (two / "adapter_config.json").read_bytes()
    load_adapter(load_model(workshop.recipe().model, torch.float32, CPU), two)


def test_the_final_model_is_whole_and_loads_in_one_process(workshop: Workshop) -> None:
    one, two = (workshop.job(f"{number} full", **FULL).folder.adapter for number in ("one", "two"))
    models = [load_model(Model(base=str(folder)), torch.float32, CPU) for folder in (one, two)]
    weights = [dict(model.named_parameters()) for model in models]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weight, weights[1][name], rtol=1e-3, atol=1e-5) for name, weight in weights[0].items())
    assert models[1].lm_head.weight is models[1].model.embed_tokens.weight


def test_all_stages_answer_and_say_what_one_process_says(said_alone: list[str], found: Found) -> None:
    assert found[0]["answered"] == found[1]["answered"] == said_alone
    assert len(said_alone) > 10


def test_a_signal_to_one_stage_ends_both_before_the_same_token(workshop: Workshop, found: Found) -> None:
    assert found[0]["ended_while_answering"] == found[1]["ended_while_answering"] == [3, "SIGTERM"]
    assert workshop.job("two ended", **BY_METRIC).folder.checkpoint(3).exists()


def test_one_stages_lack_of_memory_is_every_stages(workshop: Workshop, found: Found) -> None:
    longest, tokens = found[0]["out_of_memory"]
    assert found[1]["out_of_memory"] == [longest, tokens]
    assert tokens <= longest
    events = list(jsonl.records(workshop.folder / "runs" / "two short" / "events.jsonl"))
    assert {event["reason"] for event in events if event["event"] == "out_of_memory"} == {"another rank had no memory"}

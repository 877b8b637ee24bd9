"""Two ranks train what one trains: real processes, one group for all of it (trap 2)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.core import jsonl
from luthier.train.ranks import ALONE
from luthier.train.run import _set_up, train
from luthier.train.validate import validation_loss
from luthier.watch import rows
from tests.train.in_two_ranks import BY_METRIC, KILLED_IN, KINDS, LAST_STEP_OF_ONE_ROW, RESUMED_AFTER, SHORT
from tests.train.recorded import metrics
from tests.train.workshop import Workshop, killed_in_step

ROOT = Path(__file__).parents[2]
SHORTAGES = {
    "one_rank_out_of_memory_in_a_step": "two short in a step",
    "one_rank_out_of_memory_in_validation": "two short in validation",
    "one_rank_out_of_memory_while_a_micro_batch_is_put_together": "two short in rows",
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="module")
def alone(home: Path) -> Workshop:
    """The workshop in which one process has trained everything first, and so prepared the rows; one run of it was killed."""
    workshop = Workshop(home)
    for kind, sections in KINDS.items():
        train(workshop.job(f"one {kind}", **sections))
    train(workshop.job("one one-row", **LAST_STEP_OF_ONE_ROW))
    train(workshop.job("one whole"))
    train(workshop.job("one short", **SHORT))
    killed_in_step(workshop.job("one-then-two"), KILLED_IN)
    workshop.job("metric", **BY_METRIC)
    return workshop


@pytest.fixture(scope="module")
def found(home: Path, alone: Workshop) -> Found:
    """What each of two ranks left after all their scenes."""
    command = [sys.executable, *TORCHRUN, "-m", "tests.train.in_two_ranks", str(home)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    group = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        _, told = group.communicate(timeout=200)
    finally:
        group.terminate()  # torchrun ends its ranks
        group.wait(60)
    assert group.returncode == 0, told[-4000:]
    return [json.loads((home / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def assert_the_same_up_to_rounding(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    assert len(one) == len(two) > 0
    for alone, together in zip(one, two, strict=True):
        assert together == {**alone, "loss": together["loss"], "grad_norm": together["grad_norm"]}  # the same rows and tokens
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        if alone["grad_norm"] is not None:
            assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_have_the_losses_and_gradients_of_one(alone: Workshop, found: Found, kind: str) -> None:
    one, two = (alone.job(f"{number} {kind}", **KINDS[kind]) for number in ("one", "two"))
    assert_the_same_up_to_rounding(metrics(one.folder), metrics(two.folder))
    assert json.loads(two.folder.plan.read_text())["sizes"]["packing"] == kind.split()[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_both_ranks_are_the_same_bit_for_bit(found: Found, kind: str) -> None:
    assert found[0]["trained_in_every_way"][kind] == found[1]["trained_in_every_way"][kind]


def test_a_rank_without_rows_takes_part(alone: Workshop, found: Found) -> None:
    given = [rank["a_rank_without_rows"] for rank in found]
    assert [sum(shares) for shares in zip(*given, strict=True)] == [23, 1, 23, 1]
    assert sorted(shares[1] for shares in given) == [0, 1]
    one, two = (alone.job(f"{number} one-row", **LAST_STEP_OF_ONE_ROW) for number in ("one", "two"))
    assert_the_same_up_to_rounding(metrics(one.folder), metrics(two.folder))


def test_resumed_on_two_ranks_is_two_ranks_uninterrupted_bit_for_bit(alone: Workshop, found: Found) -> None:
    whole, broken = alone.job("two whole"), alone.job("two broken")
    for name in ("adapter.safetensors", "optimizer.safetensors", "state.json"):
        assert (whole.folder.checkpoint(12) / name).read_bytes() == (broken.folder.checkpoint(12) / name).read_bytes()
    assert metrics(whole.folder) == metrics(broken.folder)


@pytest.mark.parametrize("order", ["one-then-two", "two-then-one"])
def test_a_run_goes_on_with_another_number_of_ranks(alone: Workshop, found: Found, order: str) -> None:
    job = alone.job(order)
    assert train(job).last_step == found[0]["resumed"] == 12
    resumed = [record["step"] for record in jsonl.records(job.folder.events) if record["event"] == "resumed"]
    assert resumed[0] == RESUMED_AFTER
    assert_the_same_up_to_rounding(metrics(alone.job("one whole").folder), metrics(job.folder))
    adapters = [load_file(alone.job(name).folder.adapter / "adapter_model.safetensors") for name in ("one whole", order)]
    assert all(torch.allclose(weight, adapters[1][name], rtol=1e-3, atol=1e-5) for name, weight in adapters[0].items())


def test_only_rank_0_writes_into_the_run_folder(alone: Workshop, found: Found) -> None:
    events = [record["event"] for record in jsonl.records(alone.job("two whole").folder.events)]
    assert [events.count(event) for event in ("started", "finished", "rehearsed")] == [1, 1, 1]
    assert [line["step"] for line in metrics(alone.job("two whole").folder) if line["kind"] == "train"] == list(range(1, 13))


def test_ranks_jsonl_tells_what_each_rank_did_of_ten_steps(alone: Workshop, found: Found) -> None:
    run = alone.job("two whole").folder
    lines = list(jsonl.records(run.ranks))
    assert [(line["step"], line["rank"]) for line in lines] == [(10, 0), (10, 1)]
    steps = [line for line in jsonl.records(run.metrics) if line["kind"] == "train"][:10]
    assert lines[0]["seconds"] == pytest.approx(sum(line["seconds"] for line in steps))
    assert all(line["waiting_seconds"] < line["seconds"] for line in lines)
    assert all(line["data_seconds"] < line["seconds"] and line["host"] and line["memory_bytes"] > 10**6 for line in lines)
    assert not alone.job("one whole").folder.ranks.exists()  # there is nobody to compare with


def test_each_rows_loss_is_kept_however_many_ranks_validate(alone: Workshop, found: Found) -> None:
    one, two = (alone.job(name).folder for name in ("one whole", "two whole"))
    assert one.validated_steps == two.validated_steps != ()
    losses = {line["step"]: line["loss"] for line in metrics(two) if line["kind"] == "validation"}
    for step in one.validated_steps:
        (first,), (second,) = rows.kept(one, {step}).values(), rows.kept(two, {step}).values()
        assert first.tokens.tolist() == second.tokens.tolist()
        assert first.losses == pytest.approx(second.losses, rel=1e-3)
        assert second.mean == pytest.approx(losses[step])


def test_validation_divides_its_rows(alone: Workshop, found: Found) -> None:
    job = alone.job("validated")
    loop, _ = _set_up(job)
    whole = validation_loss(loop.model, job.prepared.rows("validation"), loop.micro_batch, loop.precision)
    assert found[0]["validated"] == found[1]["validated"]
    assert found[0]["validated"] == [pytest.approx(whole.loss, rel=1e-6), whole.num_tokens, whole.num_targets]


def test_one_ranks_lack_of_memory_is_every_ranks(alone: Workshop, found: Found) -> None:
    longest, tokens = found[0]["one_rank_out_of_memory"]
    assert found[1]["one_rank_out_of_memory"] == [longest, tokens]
    assert tokens <= longest
    events = list(jsonl.records(alone.folder / "runs" / "two short" / "events.jsonl"))
    assert {event["reason"] for event in events if event["event"] == "out_of_memory"} == {"another rank had no memory"}


@pytest.mark.parametrize(("scene", "name"), SHORTAGES.items())
def test_one_ranks_lack_of_memory_in_the_middle_of_a_run_makes_the_micro_batches_of_all_smaller(
    alone: Workshop, found: Found, scene: str, name: str
) -> None:
    one, two = alone.job("one short", **SHORT), alone.job(name, **SHORT)
    assert found[0][scene] == found[1][scene]
    assert found[0][scene]["fits"]
    events = list(jsonl.records(two.folder.events))
    assert {event["reason"] for event in events if event["event"] == "out_of_memory"} == {"another rank had no memory"}
    (resumed,) = [event["step"] for event in events if event["event"] == "resumed"]
    assert resumed in ({4, 5} if name == "two short in rows" else {3})  # rows are read ahead
    assert_the_same_up_to_rounding(metrics(one.folder), metrics(two.folder))


def test_all_ranks_ask_for_the_metric_and_go_by_the_first_ones(found: Found) -> None:
    assert [rank["the_best_by_a_metric"] for rank in found] == [[4, 6], [4, 6]]


def test_ranks_share_the_rows_of_a_task_and_end_together_where_a_signal_comes_to_one(found: Found) -> None:
    answers = ["0 by 0", "1 by 1", "2 by 0", "3 by 1", "4 by 0"]
    assert [rank["answered"] for rank in found] == [[answers, "SIGTERM"]] * 2


def test_float16_that_overflows_on_one_rank_halves_the_scale_of_all(found: Found) -> None:
    assert [rank["one_rank_overflows"] for rank in found] == [[2, 4.0, True]] * 2


def test_what_only_some_ranks_have_is_added_up_or_told(found: Found) -> None:
    assert found[0]["sums"] == found[1]["sums"]
    assert found[0]["sums"]["gradients"] == [[5.0, 6.0], None, [3.0, 6.0], [3.0, 30.0]]
    assert found[0]["sums"]["sum"] == [0.1 + 0.2, 3.0]
    assert found[0]["sums"]["same"] == {"rank": 0, "λ": [0.1, None]}


def test_one_process_alone_is_in_no_group() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    ALONE.sum_gradients([weight])
    assert (ALONE.sum([0.1, 2]), ALONE.same("x"), ALONE.first, weight.grad) == ([0.1, 2], "x", True, None)
    assert not torch.distributed.is_initialized()


def test_what_the_control_file_asks_ends_all_ranks_after_the_same_step(found: Found) -> None:
    assert [rank["asked_through_the_control_file"] for rank in found] == [["SIGTERM", 3]] * 2

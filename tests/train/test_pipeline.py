"""Stages of a pipeline train, validate and answer as one process does: real processes, unequal stages, micro batches of unequal length."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luthier.model.mesh import Axis
from luthier.model.pipeline import Neighbours, Part
from luthier.plan.weights import Stage
from luthier.train.passes import _Line, turns
from tests.train.in_stages import GENERATING, kinds

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
LAYOUTS = {"two stages": (2, 1), "three stages": (3, 1), "two replicas of two stages": (2, 2)}
Found = list[dict[str, Any]]
ALONE = ["two stages", pytest.param("three stages", marks=pytest.mark.slow)]
"""Without replicas; the ranks of another layout than the first take half a minute each."""


@pytest.fixture(scope="module")
def left_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """What the ranks of a layout leave, who are started once."""

    @functools.cache
    def left(layout: str) -> Found:
        (pipeline, data), folder = LAYOUTS[layout], tmp_path_factory.mktemp("stages")
        ranks = [f"--nproc-per-node={pipeline * data}", "-m", "tests.train.in_stages", str(folder), str(pipeline), str(data)]
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        group = subprocess.Popen([sys.executable, *TORCHRUN, *ranks], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            _, told = group.communicate(timeout=200)
        finally:
            group.terminate()  # torchrun ends its ranks
            group.wait(60)
        assert group.returncode == 0, told[-4000:]
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(pipeline * data)]

    return left


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        pytest.param(layout, kind, marks=[] if layout == "two stages" else pytest.mark.slow)
        for layout, (_, data) in LAYOUTS.items()
        for kind in kinds(data)
    ],
)
def test_stages_train_what_one_process_does(left_by: Callable[[str], Found], layout: str, kind: str) -> None:
    ranks = [rank["compared"] for rank in left_by(layout)]
    for alone, together in ((rank[kind]["alone"], rank[kind]["together"]) for rank in ranks):
        assert (together["engine"], together["targets"]) == (alone["engine"], alone["targets"])
        assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert together["norms"] == pytest.approx(alone["norms"], rel=1e-5)
        assert (together["losses"], together["norms"]) == (ranks[0][kind]["together"]["losses"], ranks[0][kind]["together"]["norms"])
    assert max(rank[kind]["apart"] for rank in ranks) < 1e-5
    assert set().union(*(rank[kind]["names"] for rank in ranks)) == set(ranks[0][kind]["expected"])


@pytest.mark.parametrize("divided", [False, True])
def test_a_stage_without_memory_goes_on_with_zeros_unless_others_wait_for_it_within_a_layer(divided: bool) -> None:
    def compute(_: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    stage = Stage(start=0, layers=1, num_layers=1, in_flight=1)
    part = Part(stage=stage, axis=Axis(), width_D=4, dtype=torch.float32, device=torch.device("cpu"), shared=(), elsewhere={})
    line = _Line(part=part, neighbours=Neighbours(part=part), divided=divided)
    batch: Any = SimpleNamespace(ids_BT=torch.zeros(1, 2))
    if divided:
        with pytest.raises(RuntimeError, match="memory"):
            line.turn(batch, compute, forward=True)
    else:
        line.turn(batch, compute, forward=True)
        with pytest.raises(RuntimeError, match="memory"):
            line.end()


@pytest.mark.slow
def test_a_gradient_is_on_one_stage_and_a_tied_matrix_gradient_on_the_first_and_the_last(left_by: Callable[[str], Found]) -> None:
    names = [rank["compared"]["qwen3 full bins"]["names"] for rank in left_by("three stages")]
    shared = [name for name in names[0] if name in names[1] + names[2]]
    assert shared == ["model.embed_tokens.weight"]
    assert (shared[0] in names[1], shared[0] in names[2]) == (False, True)


@pytest.mark.parametrize("layout", ALONE)
def test_all_stages_together_generate_what_the_whole_model_does(left_by: Callable[[str], Found], layout: str) -> None:
    assert [rank["answers"] for rank in left_by(layout)] == [dict.fromkeys(GENERATING, True)] * LAYOUTS[layout][0]


@pytest.mark.parametrize("layout", ALONE)
def test_validation_goes_through_the_stages(left_by: Callable[[str], Found], layout: str) -> None:
    for whole, together in (rank["evaluated"] for rank in left_by(layout)):
        assert together == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("layout", ALONE)
def test_what_breaks_off_one_stage_ends_the_step_of_all_and_the_next_one_is_sound(left_by: Callable[[str], Found], layout: str) -> None:
    ranks = [rank["broken_off"] for rank in left_by(layout)]
    told = {"Stopped": "Stopped", "OutOfMemoryError": "TooLarge"}
    expected = {f"{culprit} {why}": raised for culprit in range(len(ranks)) for why, raised in told.items()}
    assert ranks == [{**expected, "afterwards": "as one process"}] * len(ranks)


def test_float16_that_overflows_on_one_stage_halves_the_scale_of_all(left_by: Callable[[str], Found]) -> None:
    assert [rank["overflowed"] for rank in left_by("two stages")] == [[2, 4.0, True]] * 2


def test_stages_take_turns_as_1f1b_says() -> None:
    def told(stage: int, stages: int, num_batches: int) -> str:
        return " ".join(f"{'F' if turn.forward else 'B'}{turn.batch}" for turn in turns(Axis(size=stages, index=stage), num_batches))

    assert told(0, 1, 3) == "F0 B0 F1 B1 F2 B2"
    assert [told(stage, 3, 5) for stage in range(3)] == [
        "F0 F1 F2 B0 F3 B1 F4 B2 B3 B4",
        "F0 F1 B0 F2 B1 F3 B2 F4 B3 B4",
        "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4",
    ]
    assert told(0, 3, 1) == "F0 B0"
    assert told(0, 3, 0) == ""


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("num_batches", [0, 1, 2, 3, 9])
def test_each_micro_batch_goes_forward_and_then_backward_and_few_are_under_way(stages: int, num_batches: int) -> None:
    for index in range(stages):
        under_way: list[int] = []
        for turn in turns(Axis(size=stages, index=index), num_batches):
            if turn.forward:
                under_way.append(turn.batch)
            else:
                assert under_way.pop(0) == turn.batch
            assert len(under_way) <= stages - index
        assert under_way == []

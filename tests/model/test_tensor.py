"""Ranks that divide each matrix compute what one process does: losses, every gradient, new adapters, answers. Two real processes."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.model.in_tensor_ranks import CASES
from tests.train.test_ranks import ROOT, TORCHRUN

Found = list[dict[str, Any]]

ROUNDING = {"float64": (1e-13, 1e-12), "qwen3_5": (5e-5, 1e-4), "bfloat16": (3e-2, 6e-2)}
"""Relative difference of the whole gradient, and of one tensor's. What is left in float64 shows that the rest is the order of sums;
Qwen3.5's linear attention takes exponentials of sums in float32; in bfloat16 parts are rounded before they are added up."""
FLOAT32 = (2e-6, 5e-6)
"""The most was 1.0e-6, and 2.0e-6 in the norm over heads."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of two ranks left after all its scenes."""
    folder = tmp_path_factory.mktemp("tensor")
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *TORCHRUN, "-m", "tests.model.in_tensor_ranks", str(folder)]
    group = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        _, told = group.communicate(timeout=200)
    finally:
        group.terminate()  # torchrun ends its ranks
        group.wait(60)
    assert group.returncode == 0, told[-4000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_ranks_find_the_loss_and_the_gradient_of_one_process(found: Found, name: str) -> None:
    in_all, of_one = next((tolerances for word, tolerances in ROUNDING.items() if word in name), FLOAT32)
    for rank in found:
        case = rank["gradients"][name]
        assert case["apart in all"] < in_all
        assert {weight: apart for weight, apart in case["apart"].items() if not apart < of_one} == {}
        (loss, divided_loss), (norm, divided_norm) = case["loss"], case["norm"]
        assert divided_loss == pytest.approx(loss, rel=max(1e-6, in_all))
        assert divided_norm == pytest.approx(norm, rel=max(1e-6, in_all))
        assert case["numbers"][1] < case["numbers"][0]  # each trains a part
    assert found[0]["gradients"][name]["loss"] == found[1]["gradients"][name]["loss"]


@pytest.mark.parametrize(("name", "engine"), [("qwen3 lora tree", "fused"), ("qwen3 full tree", "packed"), ("qwen3 lora off", "plain")])
def test_the_same_layers_compute_the_parts(found: Found, name: str, engine: str) -> None:
    assert found[0]["gradients"][name]["engines"] == [engine, engine]


def test_a_new_adapter_is_the_one_that_one_process_draws(found: Found) -> None:
    for rank in found:
        assert [name for name, same in rank["drawn"].items() if not same] == []
        assert any("experts" in name for name in rank["drawn"])


def test_ranks_answer_with_the_words_of_one_process(found: Found) -> None:
    for rank in found:
        assert all(one == divided for one, divided in rank["generated"].values())

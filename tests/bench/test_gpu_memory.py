"""Memory against the plan where there is a GPU: what torch reserves, in cells that the plan's constants were not chosen by."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.cells import Measured
from bench.plan_accuracy import LEAST, MEDIAN, PERCENTILE_95

COMMAND = (sys.executable, "bench/plan_accuracy.py", "--memory", "--gpu", "--drawn", "5", "--cells", "8")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.timeout(900)
def test_what_torch_reserves_is_what_was_planned(tmp_path: Path) -> None:
    subprocess.run([*COMMAND, "--json", str(tmp_path / "cells.json")], cwd=Path(__file__).parents[2], timeout=880, check=True)
    errors = [Measured.of_json(row).error for row in json.loads((tmp_path / "cells.json").read_text())]
    sizes = sorted(map(abs, errors))
    assert statistics.median(sizes) <= MEDIAN and sizes[-1] <= PERCENTILE_95 and min(errors) >= LEAST, errors

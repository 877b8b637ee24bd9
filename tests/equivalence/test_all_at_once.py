"""Seed 001's ways to divide and to store, all at once, have the losses and gradient norms of one process over the same numbers."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from luthier.model.arrive import Bits
from tests.equivalence.all_at_once import LAYOUT, alone
from tests.equivalence.test_layouts import ROOT, TORCHRUN

SECONDS = 280
NF4 = Bits(kind="nf4", double_quant=True, dtype=torch.float32)


@pytest.mark.slow
def test_tensor_and_data_parallel_zero2_nf4_experts_and_checkpointing_are_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    one = alone(tmp_path, NF4)
    command = [*TORCHRUN, f"--nproc-per-node={LAYOUT.devices}", "-m", "tests.equivalence.all_at_once", str(tmp_path)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    group = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        _, told = group.communicate(timeout=SECONDS)
    finally:
        group.terminate()  # torchrun ends its ranks
        group.wait(60)
    assert group.returncode == 0, told[-4000:]
    first, *others = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(LAYOUT.devices)]
    assert all(other == first for other in others)
    assert [loss for loss, _ in first] == [pytest.approx(loss, rel=1e-5) for loss, _ in one]
    assert [norm for _, norm in first] == [pytest.approx(norm, rel=1e-5) for _, norm in one]

"""DeepSpeed's ZeRO-2 trains the same: an oracle that shares nothing with FSDP2 but the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.test_ranks import ROOT, TORCHRUN

pytest.importorskip("deepspeed", reason="deepspeed is not installed: the extra `oracle` has it")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_deepspeed_has_the_same_losses(tmp_path: Path) -> None:
    """It compiles C++ first, into a folder of its own: a lock that a killed process has left in the usual one would hang it."""
    command = [sys.executable, *TORCHRUN, "-m", "tests.equivalence.in_deepspeed", str(tmp_path)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    group = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        told, _ = group.communicate(timeout=800)
    finally:
        group.terminate()  # torchrun ends its ranks
        group.wait(60)
    assert group.returncode == 0, told[-4000:]
    for rank in (0, 1):
        for losses in json.loads((tmp_path / f"losses-{rank}.json").read_text()).values():
            assert losses["here"] == [pytest.approx(loss, rel=1e-5) for loss in losses["there"]]
            assert losses["here"][-1] < losses["here"][0]

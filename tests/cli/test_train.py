"""`luthier train` as a user starts it, in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.environment import blocks
from tests.train.workshop import Workshop


def trained(workshop: Workshop, name: str, **variables: str) -> tuple[str, str]:
    """The adapter's hash, and the allocator that the plan counted with."""
    recipe = {
        "name": name,
        "model": {"base": str(workshop.base())},
        "data": {"sources": [{"path": str(workshop.data(30))}]},
        "training": {"max_steps": 6, "global_batch_size": 4},
        "checkpoints": {"eval_steps": 3, "save_steps": 3},
    }
    (path := workshop.folder / f"{name}.yaml").write_text(json.dumps(recipe))
    environ = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "GLIBC_TUNABLES")}
    command = [sys.executable, "-m", "luthier.cli.main", "train", str(path)]
    given = {"LUTHIER_RUNS": str(workshop.folder / "runs"), **variables}
    done = subprocess.run(command, env={**environ, **given}, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = workshop.folder / "runs" / name
    (adapter,) = folder.glob("adapter/adapter_model.safetensors")
    return hashlib.sha256(adapter.read_bytes()).hexdigest(), json.loads((folder / "plan.json").read_text())["setup"]["allocator"]


@pytest.mark.skipif(blocks().library is None, reason=f"our own allocator cannot be had here: {blocks().note}")
def test_a_run_is_bitwise_the_same_with_our_own_allocator_and_without(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    (own, planned), (glibc, planned_without) = trained(workshop, "own"), trained(workshop, "glibc", LD_PRELOAD="")
    assert (planned, planned_without) == ("luthier", "glibc")
    assert own == glibc

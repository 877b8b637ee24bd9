"""Memory that preparing many rows takes."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.families import CORPUS, family

BYTES_PER_ROW = 4_200
"""Measured 2026-11-20: 3,160."""
MOST_BYTES = 600 * 10**6
"""For 20,000 rows; measured 378 million, and 330 million for 5,000."""
CODE = """
import sys
from pathlib import Path
from luthier.core.progress import Silent
from luthier.data.prepare import prepare
from luthier.recipe.schema import Recipe
summary = prepare(Recipe.model_validate_json(sys.argv[1]), Silent()).summary
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(summary.rows.kept, sum(split.tokens for split in summary.splits.values()), 1024 * int(peak))
"""
"""Not getrusage: its peak counts the process that started this one."""


def peak_bytes(folder: Path, num_rows: int) -> int:
    """Peak resident memory of a process that prepares so many rows of about 300 tokens."""
    words, draw = " ".join(CORPUS).split(), random.Random(0)
    rows = folder / f"rows{num_rows}.jsonl"
    with rows.open("w") as file:
        for number in range(num_rows):
            asked, answer = (" ".join(draw.choices(words, k=length)) for length in (100, 40))
            file.write(json.dumps({"prompt": f"{number}: {asked}", "completion": answer}) + "\n")
    recipe = json.dumps({"name": "a", "model": {"base": str(folder / "base")}, "data": {"sources": [{"path": str(rows)}]}})
    env = {"LUTHIER_RUNS": str(folder / "runs"), "PATH": "", "PYTHONPATH": ":".join(sys.path), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run([sys.executable, "-c", CODE, recipe], capture_output=True, text=True, check=True, timeout=120, env=env)
    kept, tokens, peak = map(int, found.stdout.split())
    assert kept == num_rows and 250 < tokens / num_rows < 350
    return peak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_grows_by_no_more_than_the_stated_bytes_a_row(tmp_path: Path) -> None:
    family("chatml").save(tmp_path / "base")
    few, many = peak_bytes(tmp_path, 5_000), peak_bytes(tmp_path, 20_000)
    assert many - few < 15_000 * BYTES_PER_ROW
    assert many < MOST_BYTES

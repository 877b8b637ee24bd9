"""The fuzzing that looks where its inputs come to: with atheris, where it is installed (`pip install -e .[fuzz]`: Linux, 35 MB)."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: pip install -c constraints.txt -e '.[fuzz]'")
def test_inputs_that_are_made_by_what_of_the_code_they_reach_end_in_errors_of_luthiers(tmp_path: Path) -> None:
    options = ["-runs=6000", "-max_total_time=40", "-max_len=20000", "-seed=1", "-print_final_stats=1", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, "-m", "tests.faults.guided", str(tmp_path / "corpus"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    (number,) = re.findall(r"number_of_executed_units: (\d+)", done.stderr)
    assert int(number) > 1000

"""`luthier check`, by the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.zoo import tiny
from tests.train.workshop import Workshop


def luthier(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "luthier.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)


def test_the_command_tells_every_outcome_and_fails_where_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    workshop = Workshop(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(workshop.recipe().model_dump(mode="json", exclude_unset=True)))
    done = luthier("check", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not so: ") == 11 and done.stdout.count("not applicable: ") == 1

    tiny("qwen3_next").config.save_pretrained(workshop.base())  # weights are not asked for
    done = luthier("check", str(path), "--json")
    assert done.returncode == 1 and "FAILS: something that the adapter should train" in done.stderr
    states = [check["state"] for check in json.loads(done.stdout)["checks"]]
    assert (len(states), states.count("fail")) == (12, 1)

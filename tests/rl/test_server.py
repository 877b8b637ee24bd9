"""The split topology: a server of another process draws with each step's adapter, this one learns (slow: both are commands)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core import jsonl
from luthier.runs.store import RunFolder
from tests.train.workshop import Workshop

SOURCE = Path(__file__).parents[2] / "src"
TAUGHT = """\
name: NAME
model: {base: base, dtype: float32}
lora: {r: 4, alpha: 8}
data: {sources: [{path: rows-30.jsonl}], split: {train: 0.8, validation: 0.2, test: 0}, split_method: exact}
training: {max_steps: 40, global_batch_size: 4, learning_rate: 1.0e-2}
checkpoints: {final: last, eval_steps: 40}
"""
REINFORCED = """\
lora.init_from=taught
rl={rewards: {length: 1.0}, group_size: 4, max_new_tokens: 24}
training={max_steps: 4, global_batch_size: 12, learning_rate: 1.0e-3}
""".splitlines()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_a_server_draws_is_learned_from_as_what_the_trainer_draws_itself(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    workshop.base()
    workshop.data(30)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "LUTHIER_RUNS": str(tmp_path / "runs")}
    luthier = [sys.executable, "-m", "luthier.cli.main"]

    def run_of(verb: str, name: str, *overrides: str, **variables: str) -> tuple[RunFolder, list[dict[str, float]]]:
        (tmp_path / f"{name}.yaml").write_text(TAUGHT.replace("NAME", name))
        command = [*luthier, verb, f"{name}.yaml", *overrides]
        ended = subprocess.run(command, cwd=tmp_path, env={**environment, **variables}, capture_output=True, text=True, timeout=240)
        assert ended.returncode == 0, ended.stderr
        run = RunFolder(tmp_path / "runs" / name)
        return run, [line for line in jsonl.salvage(run.metrics).records if line["kind"] == "train"]

    run_of("train", "taught")
    words = ["serve", "taught", "--port", "0", f"serving.options.adapters_from={tmp_path / 'runs'}"]
    with subprocess.Popen([*luthier, *words], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url, token = server.stdout.readline().strip(), server.stdout.readline().removeprefix("token ").strip()
            host = re.sub(r"\W", "_", url.removeprefix("http://").partition("/")[0])
            split, lines = run_of("rl", "split", *REINFORCED, f"rl.sampler={url}", **{f"LUTHIER_{host}_TOKEN": token})
        finally:
            server.terminate()
    alone, own = run_of("rl", "alone", *REINFORCED)
    for step in range(1, 5):
        drawn, expected = ([each["answers"] for each in jsonl.salvage(run.rollout(step)).records] for run in (split, alone))
        assert drawn == expected
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in own], rel=1e-3, abs=1e-5)
    assert all(line["drift"] < 1e-4 for line in lines if line["drift"] is not None)
    assert [path.name for path in (split.path / "policy").iterdir()] == ["step-000003"]

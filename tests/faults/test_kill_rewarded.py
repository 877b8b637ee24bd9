"""A run of rewarded answers that is killed, and goes on: bit for bit the uninterrupted one, and its answers with it."""

import json
from pathlib import Path

from luthier.core import jsonl
from luthier.runs.store import RunFolder
from tests.faults.harness import Start, Starter
from tests.train.recorded import metrics

# A process counts calls anew. Two updates learn from the same answers: 1 and 2, 3 and 4, 5 and 6; it is saved after 3, and at the end.
KILLS = {
    "while the first answers are drawn": "model/decode.py:step:6",
    "after they were rewarded, before they are kept": "rl/record.py:write:2",
    "between two updates by the same answers": "optim/adam.py:adam:5",
    "after a resume in their middle, while the next are drawn": "model/decode.py:step:6",
    "before the adapter": "train/final.py:save_final:1",
}
RECIPE = """\
name: run
model: {base: demo, dtype: float32}
lora: {r: 4, alpha: 8, dropout: 0.1}
data: {sources: [{path: rows.jsonl}], split: {train: 0.8, validation: 0.2, test: 0}, split_method: exact}
rl: {rewards: {length: 1.0, 'tests.rl.wishes:early': 0.5}, group_size: 4, max_new_tokens: 24, updates: 2, kl: 0.01}
training: {max_steps: 6, global_batch_size: 8, learning_rate: 0.003}
checkpoints: {eval_steps: 6, save_steps: 3, keep: 1, early_stopping_patience: 'off'}
"""


def test_a_run_of_rewarded_answers_killed_in_every_phase_is_the_uninterrupted_one(tmp_path: Path, processes: Starter) -> None:
    rows = ({"prompt": f"What is thing number {number}?", "completion": "a cat"} for number in range(12))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def start(runs: str, kill_in: str = "") -> tuple[int, RunFolder]:
        ended = processes.run(Start(words=("rl", str(tmp_path / "recipe.yaml")), runs=str(tmp_path / runs), kill_in=kill_in))
        assert ended.killed or ended.code == 0, ended.said
        return ended.code, RunFolder(tmp_path / runs / "run")

    for phase, where in KILLS.items():
        code, run = start("killed", where)
        assert code == -9 and not run.finished, phase
    assert start("killed")[0] == start("whole")[0] == 0
    whole = RunFolder(tmp_path / "whole" / "run")
    assert {record["step"] for record in jsonl.records(run.events) if record["event"] == "resumed"} >= {3, 6}
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == (whole.adapter / "adapter_model.safetensors").read_bytes()
    assert metrics(run) == metrics(whole)
    for step in (1, 3, 5):
        assert run.rollout(step).read_bytes() == whole.rollout(step).read_bytes()

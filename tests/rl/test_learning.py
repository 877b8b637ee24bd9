"""Reinforcement learns what the rows before it did not teach: the tasks of bench/reinforce.py, on the demo base (slow)."""

from pathlib import Path

import pytest

from bench.reinforce import learn

CHANCE = {"larger": 0.5, "bandit": 0.5}
"""What the style alone gives."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", ["larger", "bandit"])
def test_the_held_out_reward_rises_beyond_its_interval(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    outcome = learn(task, seed=1, steps=15, work=tmp_path)
    assert outcome.before["value"] == pytest.approx(CHANCE[task], abs=0.15)
    assert outcome.after["low"] > outcome.before["high"]

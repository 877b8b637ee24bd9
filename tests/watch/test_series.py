"""metrics.jsonl as columns: fast, whatever its lines look like, and read on from where it ended."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core import files, jsonl
from luthier.train.record import Line
from luthier.watch.series import COLUMNS, KEYS, REWARDED, read, read_on


def line(step: int, **values: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "step": step,
        "epoch": step / 100,
        "kind": "train",
        "loss": 2.0 + 1.5e-7 * step,
        "learning_rate": 3e-05,
        "grad_norm": 0.5,
        "tokens": 4096,
        "supervised_tokens": 512,
        "tokens_per_second": 12345.678901234567,
        "seconds": 0.25,
        "data_seconds": 1.25e-05,
        "memory_bytes": 812_345_678,
        "device_utilization": 0.97,
    }
    return {**plain, **values}


def rewarded(step: int, **values: Any) -> dict[str, Any]:
    """A step that learned from its own answers, as `luthier.rl.record` tells of it."""
    told = {"reward": 0.5, "answer_tokens": 12.25, "cut": 0.0, "silent": 0.25, "failed": 0.0, "entropy": 0.5}
    return {**line(step), **told, "kl": None, "drift": 0.0021, "clipped": 0.0, **values}


def validation(step: int, loss: float = 2.5) -> dict[str, Any]:
    return line(step, kind="validation", loss=loss, learning_rate=None, grad_norm=None, data_seconds=None)


def text(records: list[dict[str, Any]]) -> str:
    return "".join(jsonl.dumps(record) + "\n" for record in records)


def test_the_columns_are_the_keys_of_a_line_that_the_trainer_writes() -> None:
    assert tuple(asdict(Line(**line(1)))) == KEYS
    assert set(COLUMNS) == set(KEYS) - {"kind"}


def test_steps_and_validations_are_columns_to_the_last_bit(tmp_path: Path) -> None:
    records = [
        line(1),
        line(2, loss=float("nan"), device_utilization=None),
        validation(2, loss=2.125),
        line(3, loss=1e300, grad_norm=5e-324),
    ]
    (path := tmp_path / "metrics.jsonl").write_text(text(records))
    series = read(path)
    assert series.train["step"].tolist() == [1, 2, 3]
    assert series.train["tokens_per_second"].tolist() == [12345.678901234567] * 3
    assert series.train["learning_rate"].tolist() == [3e-05] * 3
    assert series.train["loss"][[0, 2]].tolist() == [2.0 + 1.5e-7, 1e300]
    assert math.isnan(series.train["loss"][1]) and math.isnan(series.train["device_utilization"][1])
    assert series.train["grad_norm"][2] == 5e-324
    assert (series.validation["step"].tolist(), series.validation["loss"].tolist()) == ([2], [2.125])
    assert series.num_damaged == 0


@pytest.mark.parametrize(
    ("damage", "num_damaged"),
    [
        ("", 0),
        ('{"step": 3, "loss"', 0),
        ('{"step": 3}\n', 1),
        ("\x00\x00\x00\n", 1),
        ('{"step": "three", "kind": "train"}\n', 1),
        ('{"kind": "train", "step": 3, "loss": 1.5}\n', 0),
        ("[" * 100_000 + "\n", 1),
        ("[3]\n\n", 2),
    ],
    ids=["none", "torn", "keys missing", "zeros", "no number", "another order", "deep", "no record"],
)
def test_whatever_lies_between_the_lines_the_lines_are_read(tmp_path: Path, damage: str, num_damaged: int) -> None:
    (path := tmp_path / "metrics.jsonl").write_text(text([line(1), line(2)]) + damage)
    series = read(path)
    assert series.train["step"].tolist()[:2] == [1, 2]
    assert series.num_damaged == num_damaged


@pytest.mark.parametrize("number", ["1.2.3", "12-3", "E5", "", "--1", "NA"])
def test_what_looks_like_a_line_and_has_no_number_is_damaged_and_shifts_no_column(tmp_path: Path, number: str) -> None:
    broken = text([line(2)]).replace("4096", number)
    (path := tmp_path / "metrics.jsonl").write_text(text([line(1)]) + broken + text([line(3)]))
    series = read(path)
    assert (series.train["step"].tolist(), series.num_damaged) == ([1, 3], 1)
    assert series.train["supervised_tokens"].tolist() == [512, 512]


def test_a_run_that_goes_on_is_read_on_from_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert len(read(path).train) == 0
    path.write_text(text([line(1)]) + text([line(2)])[:50])
    first = read(path)
    path.write_bytes(path.read_bytes()[:-50])
    for record in (line(2), validation(2), line(3)):
        jsonl.append(path, record)
    second = read_on(path, first)
    assert first.train["step"].tolist() == [1]
    assert second.train["step"].tolist() == [1, 2, 3]
    assert np.array_equal(second.train.values, read(path).train.values)
    assert read_on(path, second).offset == second.offset == path.stat().st_size


def test_after_a_resume_that_cut_lines_back_the_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text([line(step) for step in range(1, 6)]))
    before = read(path)
    files.write(path, text([line(step) for step in range(1, 3)]))  # as checkpoint.resume does
    for step in range(3, 9):
        jsonl.append(path, line(step, loss=1.0))
    after = read_on(path, before)
    assert after.train["step"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert after.train["loss"][2] == 1.0


def test_a_curve_is_thinned_to_its_least_and_largest_and_loses_no_spike(tmp_path: Path) -> None:
    path, losses = tmp_path / "metrics.jsonl", np.random.default_rng(1).normal(2.0, 0.1, 10_007)
    losses[1234], losses[9999], losses[500] = 50.0, 0.0, math.nan
    path.write_text(text([line(step, loss=loss) for step, loss in enumerate(losses.tolist(), start=1)]))
    drawn = read(path).train.thinned("loss", points=200)
    assert 150 < len(drawn.x) <= 200
    assert (drawn.y.max(), drawn.x[drawn.y.argmax()]) == (50.0, 1235)
    assert (drawn.y.min(), drawn.x[drawn.y.argmin()]) == (0.0, 10_000)
    assert (np.diff(drawn.x) > 0).all() and np.isfinite(drawn.y).all()
    whole = read(path).train.thinned("loss", points=20_000)
    assert len(whole.x) == 10_006


def test_200_000_logged_steps_are_read_in_well_under_a_second(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    once = text([line(step) for step in range(10_000, 20_000)])
    path.write_text(once * 20)
    began = time.process_time()
    series = read(path)
    drawn = series.train.thinned("loss", points=1000)
    assert time.process_time() - began < 1.0  # 0.6 s
    assert (len(series.train), len(drawn.x)) == (200_000, 1000)


def test_what_is_told_of_rewarded_answers_is_read_and_what_is_not_measured_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    parts = {"reward/exact": 0.25, "reward/length": 1.0}
    path.write_text(text([rewarded(1), validation(1), rewarded(2, reward=None, drift=1e-6, **parts), rewarded(3, reward=0.75)]))
    train = read(path).train
    assert train["reward"][[0, 2]].tolist() == [0.5, 0.75] and math.isnan(train["reward"][1])
    assert train["drift"].tolist() == [0.0021, 1e-6, 0.0021]
    assert not train.measured("kl") and train.measured("reward")
    assert train.parts.keys() == {"reward/exact", "reward/length"} and train.parts["reward/exact"][1] == 0.25
    assert np.isnan(train.parts["reward/exact"][[0, 2]]).all()
    assert len(read(path).validation["loss"]) == 1 and not read(path).validation.more


def test_a_run_without_rewards_has_none_of_their_columns(tmp_path: Path) -> None:
    (path := tmp_path / "metrics.jsonl").write_text(text([line(1), line(2)]))
    train = read(path).train
    assert not train.more and not any(train.measured(column) for column in REWARDED)
    assert np.isnan(train["reward"]).tolist() == [True, True]


def test_rewarded_lines_are_read_on_thinned_and_survive_damage_like_others(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text([line(1), rewarded(2, reward=0.0)]) + '{"step": 3, "reward": 9' + "\n" + text([rewarded(4, silent=10**400)]))
    first = read(path)
    assert first.num_damaged == 2
    for step in range(5, 2005):
        jsonl.append(path, rewarded(step, reward=step / 2005, **{"reward/own": 1.0}))
    both = read_on(path, first)
    assert (len(first.train), len(both.train)) == (2, 2002)
    whole = read(path).train
    assert both.train.more.keys() == whole.more.keys()
    assert all(np.array_equal(both.train.more[name], whole.more[name], equal_nan=True) for name in whole.more)
    drawn = both.train.thinned("reward", points=100)
    assert len(drawn.x) <= 100 and drawn.y.max() == 2004 / 2005
    assert len(both.train.finite["reward"]) == 2002
    assert both.train.where(both.train["step"] > 2000)["reward"].tolist() == [step / 2005 for step in range(2001, 2005)]

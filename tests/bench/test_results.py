"""Figures and tables from a contest's results."""

from pathlib import Path
from typing import Any

import pytest

from bench.report import detail, summary
from bench.results import Counted, Entry, Results, Round, best_peer, disturbed, ratio

ROWS = Counted(rows=2, tokens=1000, supervised=300, digest="abc")


def entry(name: str, *seconds: float, peer: bool = True, others: float = 0.0, **fields: Any) -> Entry:
    rounds = tuple(Round(seconds=item, processor_seconds=2 * item, others_seconds=others, floor_operations=5e11) for item in seconds)
    told = {"whole": False, "counted": ROWS, "peak_bytes": 10**9, "variables": {}, "options": {}, **fields}
    return Entry(name=name, peer=peer, rounds=rounds, **told)


def results(*entries: Entry) -> Results:
    conditions: dict[str, Any] = {"date": "2026-11-20", "command": "python bench/train.py", "processor": "EPYC", "cores": 2, "threads": 2}
    conditions |= {"load_before": 0.1, "gpu": "", "workload": "i", "told": "agents", "size": "S", "batch": 16, "dropout": 0.0}
    conditions |= {"rows": ROWS, "whole": Counted(rows=1, tokens=700, supervised=300, digest="def"), "rate_flops": 1e12}
    conditions |= {"rate_told": "1,000 GFLOP/s", "peak_flops": 0.0, "peak_told": "", "four_n_operations": 1e11}
    return Results(**conditions, entries=entries)


FAST = entry("luthier", 1.0, 2.0, 1.0, peer=False)


def test_ratios_are_paired_by_round() -> None:
    found = ratio(entry("trainer", 4.0, 4.0, 5.0), FAST)
    assert (found.median, found.low, found.high) == (4.0, 2.0, 5.0)


def test_the_best_peer_trains_the_same_rows_and_is_the_fastest() -> None:
    whole = entry("trl-whole", 0.5, 0.5, 0.5, whole=True)
    best = best_peer(results(FAST, entry("trl-default", 9.0), entry("trainer", 4.0), whole))
    assert best is not None and best.name == "trainer"


def test_the_share_of_the_floor_is_the_least_time_over_the_time() -> None:
    assert results(FAST).share_of_floor(FAST) == pytest.approx(0.5)  # 5e11 operations at 1e12 a second, median 1 s


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        (ROWS, "same rows"),
        (ROWS.model_copy(update={"digest": ""}), "same tokens"),
        (ROWS.model_copy(update={"digest": "xyz"}), "DIFFERS: other tokens, order or targets"),
        (ROWS.model_copy(update={"supervised": 299}), "DIFFERS: 1000 tokens, 299 supervised"),
    ],
)
def test_rows_are_compared(counted: Counted, said: str) -> None:
    assert results(FAST).agrees(entry("trainer", 1.0, counted=counted)) == said


def test_a_round_in_which_others_worked_is_told() -> None:
    assert disturbed([entry("trainer", 1.0, others=0.5), FAST]) == ["trainer, round 1: 25%"]


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    results(FAST).write(tmp_path / "new" / "results.json")
    assert Results.read(tmp_path / "new" / "results.json") == results(FAST)


def test_the_tables_have_the_goals_figures() -> None:
    whole = entry("trl-whole", 5.0, 10.0, 5.0, whole=True, counted=Counted(rows=1, tokens=700, supervised=300, digest="def"))
    peers = (entry("trl-default", 12.0, 24.0, 12.0), entry("trainer", 4.0, 8.0, 4.0, peak_bytes=2 * 10**9), whole)
    found = results(FAST, *peers, entry("litgpt", failed="out of memory"))
    assert "| 12.00 × (12.00 … 12.00) | 4.00 × (4.00 … 4.00) trainer | 5.00 × (5.00 … 5.00) | 50% | 0.50 |" in summary([found])
    assert "| `trainer` | 4.00 | 8.00 | 250 | 4.00 × (4.00 … 4.00) | 12% | 2,000 | 0.0 | same rows |" in detail(found)
    assert "- `litgpt` failed: out of memory" in detail(found)
    assert "Allocator of all: jemalloc." in detail(found.model_copy(update={"allocator": "jemalloc"}))

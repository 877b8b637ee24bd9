"""What the time benchmark says of its pairs: each prediction against its own run, the machine's drift beside it."""

import pytest

from bench.plan_time import CELLS, Pair, Result, table

RESULT = Result(
    cell=CELLS[0],
    pairs=(
        Pair(predicted=110.0, forecast=99.0, real=100.0, probe_seconds=4.0),
        Pair(predicted=110.0, forecast=104.0, real=100.0, probe_seconds=4.0),
        Pair(predicted=180.0, forecast=156.0, real=150.0, probe_seconds=4.0),
    ),
)


def test_an_error_is_the_median_of_each_pairs_own() -> None:
    assert RESULT.probe_error == pytest.approx(0.10)
    assert RESULT.forecast_error == pytest.approx(0.04)


def test_drift_is_how_far_the_same_run_lies_from_its_middle() -> None:
    assert RESULT.drift == pytest.approx(25 / 125)  # 100 … 150 s are 125 ± 25


def test_the_table_has_each_cells_errors_and_counts_those_that_keep_the_promise() -> None:
    told = table([RESULT])
    assert "| 100.0 | ± 20% | 110.0 | +10.0% (+10.0% … +20.0%) | +4.0% (-1.0% … +4.0%) |" in told
    assert told.endswith("1 of 1 within 25% from the probe, 1 within 5% after 10 steps.")

"""Lengths are told in tokens of rows that are there."""

from luthier.data.account import lengths_of


def test_percentiles_are_lengths_of_rows() -> None:
    found = lengths_of([10, 20, 30, 1000])
    assert (found.total, found.mean, found.p50, found.p95, found.max) == (1060, 265.0, 20, 1000, 1000)


def test_histogram_and_coverage_go_by_powers_of_two() -> None:
    found = lengths_of([8, 9, 16, 17, 100])
    assert dict(found.histogram) == {8: 1, 16: 2, 32: 1, 128: 1}
    assert dict(found.coverage) == {8: 0.2, 16: 0.6, 32: 0.8, 64: 0.8, 128: 1.0}


def test_no_rows_have_no_lengths() -> None:
    assert lengths_of([]).max == 0

"""Sizes and times as people read them."""

import pytest

from luthier.core.words import duration, gigabytes


@pytest.mark.parametrize(
    ("number", "told"),
    [(3970, "3.97 kB"), (0, "0 kB"), (999_400, "999 kB"), (2_650_000, "2.65 MB"), (80e6, "80 MB"), (15.2e9, "15.2 GB"), (1e12, "1000 GB")],
)
def test_bytes_are_told_in_the_unit_that_keeps_them_short(number: float, told: str) -> None:
    assert gigabytes(number) == told


@pytest.mark.parametrize(("seconds", "told"), [(0.26, "0.26 s"), (40, "40 s"), (720, "12 min"), (18_360, "5.1 h")])
def test_times_likewise(seconds: float, told: str) -> None:
    assert duration(seconds) == told

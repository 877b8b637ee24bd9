"""Sizes and times as people read them."""

import pytest

from luthier.core.words import duration, gigabytes, small


@pytest.mark.parametrize(
    ("number", "told"),
    [(3970, "3.97 kB"), (0, "0 kB"), (999_400, "999 kB"), (2_650_000, "2.65 MB"), (80e6, "80 MB"), (15.2e9, "15.2 GB"), (1e12, "1000 GB")],
)
def test_bytes_are_told_in_the_unit_that_keeps_them_short(number: float, told: str) -> None:
    assert gigabytes(number) == told


@pytest.mark.parametrize(("seconds", "told"), [(0.26, "0.26 s"), (40, "40 s"), (720, "12 min"), (18_360, "5.1 h")])
def test_times_likewise(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_an_event_tells_its_small_things_and_a_finding_its_sentence() -> None:
    assert small({"event": "saved", "time": 5.0, "step": 40, "seconds": 0.08731, "sizes": {"rows": 8}}) == "step 40, seconds 0.08731"
    told = {"event": "finding", "code": "save-failed", "severity": "warn", "message": "no room", "evidence": {}, "step": 5}
    assert small(told) == "warn: no room [save-failed]"

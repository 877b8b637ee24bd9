"""Krippendorff's alpha, against examples worked by hand."""

import sys

import pytest

from luthier.core.errors import UsageError
from luthier.review.agreement import Agreement, Opinion, agreement

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section D: 4 observers, 12 units, `.` is missing. Interval: 0.849.
PUBLISHED = """\
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 ."""


def opinions(table: str) -> list[Opinion]:
    return [
        Opinion(reviewer=f"reviewer {line}", of=f"row {row}", value=float(value))
        for line, text in enumerate(table.splitlines())
        for row, value in enumerate(text.split())
        if value != "."
    ]


def test_alpha_is_the_published_one() -> None:
    found = agreement(opinions(PUBLISHED))
    assert found.alpha == pytest.approx(0.849, abs=5e-4)
    assert found.num_shared == 11  # the 12th unit has one value


def test_alpha_of_two_reviewers_is_what_a_hand_works_out() -> None:
    # Values 1 1 | 1 1 | 0 0 | 1 0: each row's mean squared difference 0, 0, 0, 1: observed 1/4. Five 1s, three 0s of eight values: a pair
    # drawn from all of them differs in 2 · 5 · 3 / (8 · 7) = 15/28 of cases. 1 − (1/4) / (15/28) = 8/15.
    assert agreement(opinions("1 1 0 1\n1 1 0 0")).alpha == pytest.approx(8 / 15)


def test_a_tie_is_half_as_far_as_the_contrary() -> None:
    contrary, tied = (agreement(opinions(f"1 1 0 0 1\n1 1 0 0 {last}")).alpha for last in ("0", "0.5"))
    assert contrary is not None and tied is not None and contrary < tied < 1


def test_reviewers_who_say_the_same_agree_wholly_and_contraries_less_than_by_chance() -> None:
    assert agreement(opinions("1 0 0.5\n1 0 0.5")).alpha == pytest.approx(1)
    found = agreement(opinions("1 0 1 0\n0 1 0 1")).alpha
    assert found is not None and found < 0


@pytest.mark.parametrize(("table", "shared"), [("", 0), ("1 0 1", 0), ("1 . 1\n. 0 .", 0), ("1 1 1\n1 1 1", 3), ("1 1 0\n1 1 .", 2)])
def test_there_is_no_alpha_where_nothing_is_shared_or_nothing_varies(table: str, shared: int) -> None:
    assert agreement(opinions(table)) == Agreement(alpha=None, num_shared=shared)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.metrics.agreement", None)
    with pytest.raises(UsageError, match="extra `review`"):
        agreement(opinions("1 0\n1 1"))

"""What the scaling benchmark says of its pairs: each gain within its own pair, each stage's idle share beside the formula."""

import pytest

from bench.scaling import Course, Pair

PAIRS = (Pair(alone=2.0, together=1.0), Pair(alone=4.0, together=2.5), Pair(alone=3.0, together=1.6))


def test_a_gain_is_that_of_a_pair_and_not_of_medians() -> None:
    assert Course(name="data: 2", tokens=3000, pairs=PAIRS).gains == pytest.approx([1.6, 1.875, 2.0])


def test_a_row_has_tokens_a_second_the_gain_and_what_stages_waited() -> None:
    course = Course(name="pipeline: 2", tokens=3000, pairs=PAIRS, waited=((0.1, 0.3, 0.2), (0.05, 0.15, 0.1)), formula=1 / 9)
    assert course.row() == "| pipeline: 2 | 1,000 | 1,875 | 1.88 × (1.60 … 2.00) | 20.0% · 10.0% | 11.1% |"
    assert Course(name="data: 2", tokens=3000, pairs=PAIRS).row().endswith("| – | – |")

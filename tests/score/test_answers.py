"""Refusals and answers that go round in a circle."""

import pytest

from luthier.score.answers import refuses, repeats


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "Sorry, I cannot assist with this request.",
        "As an AI language model, I do not have opinions.",
        "<think>is this allowed?</think>\nI’m unable to provide that.",
        "Unfortunately, I am not able to open files.",
    ],
)
def test_a_refusal_is_known_by_its_beginning(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Knight to f3; I can't see a better move.",
        "<think>I can't help with this? Yes I can.</think> e4",
        "The function cannot provide a default, so pass one.",
        "Sorry about the wait. The answer is 12.",
        "x" * 300 + " I can't help with that.",
    ],
)
def test_other_answers_are_no_refusals(answer: str) -> None:
    assert not refuses(answer)


@pytest.mark.parametrize("answer", ["and so on, and so on, and so on, ", "1. a\n1. a\n1. a\n", "ha" * 20, "the end" + "." * 40])
def test_the_same_text_three_times_at_the_end_is_a_circle(answer: str) -> None:
    assert repeats(answer)


@pytest.mark.parametrize("answer", ["", "Well...", "1, 2, 3, 4, 5, 6", "a b c a b c", "no no no", " " * 50, "0.3333"])
def test_a_list_or_an_ellipsis_is_none(answer: str) -> None:
    assert not repeats(answer)

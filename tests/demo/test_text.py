"""The pre-training text: seeded, in English of the domain, without the demo's task."""

import itertools
import re

import pytest

from luthier.demo import text


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return list(itertools.islice(text.documents(3), 3000))


def test_the_same_seed_gives_the_same_text(sample):
    assert sample == list(itertools.islice(text.documents(3), 3000))


def test_another_seed_gives_other_text(sample):
    assert not set(sample) & set(itertools.islice(text.documents(4), 3000))


def test_the_text_does_not_hold_the_task_of_the_demo(sample):
    house_format = re.compile(
        r"\b(?:fix|feat)\(\w+\)|^(?:pass|flaky|fail) \S+$|HRB-|\b(?:adopt|ask) \S+ \(|PR \d+ (?:approve|reject)", re.M
    )
    assert not [document for document in sample if house_format.search(document)]


def test_every_turn_of_a_dialogue_is_closed(sample):
    dialogues = [document for document in sample if text.TURN_START in document]
    assert len(dialogues) > 500
    assert all(
        document.count(text.TURN_START) == document.count(text.TURN_END) and document.endswith(text.TURN_END) for document in dialogues
    )


@pytest.mark.parametrize(
    ("verb", "he", "then", "now"),
    [
        ("copy", "copies", "copied", "copying"),
        ("stop", "stops", "stopped", "stopping"),
        ("store", "stores", "stored", "storing"),
        ("fix", "fixes", "fixed", "fixing"),
        ("send", "sends", "sent", "sending"),
        ("play", "plays", "played", "playing"),
        ("transmit", "transmits", "transmitted", "transmitting"),
    ],
)
def test_verbs_are_inflected(verb, he, then, now):
    assert (text.third_person(verb), text.past(verb), text.gerund(verb)) == (he, then, now)

"""Progress goes through a pipe and is shown at its other end."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from luthier.core.progress import Advance, Told, follow


class Kept:
    """Progress that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        self.seen.append(("begun", name, total))
        yield lambda done, text: self.seen.append((name, done, text))
        self.seen.append(("ended", name))

    def say(self, line: str) -> None:
        self.seen.append(("said", line))


def test_what_is_told_is_shown_as_if_it_had_been_done_here() -> None:
    stream, here, there = io.StringIO(), Kept(), Kept()
    for progress in (here, Told(stream)):
        with progress.task("training", 3) as advance:
            advance(1, "loss 0.5")
            progress.say('a line: {"say": 1}')
            with progress.task("scoring", 2) as inner:
                inner(2, "")
            advance(3, "loss 0.4")
        progress.say("done – really")
    follow(stream.getvalue().splitlines(), there)
    assert there.seen == here.seen


def test_the_tasks_of_who_crashed_are_ended_when_it_begins_anew_and_at_the_end() -> None:
    shown = Kept()
    crashed = ['{"anew": true}', '{"task": "training", "total": 3}', '{"done": 1, "text": "x"}']
    follow([*crashed, *crashed], shown)
    assert shown.seen == [("begun", "training", 3), ("training", 1, "x"), ("ended", "training")] * 2

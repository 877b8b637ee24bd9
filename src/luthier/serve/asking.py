"""Many questions to one server: several at once, each again where it may pass, the answers in order. Light."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TypeVar

from luthier.serve.wire import Unanswered

AT_ONCE = 16
"""Requests that one server is given at once."""
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further try, or as many as the server asks for, up to LONGEST_WAIT."""
LONGEST_WAIT = 60.0
PASSING = (0, 408, 429, 500, 502, 503, 504)
"""What may be otherwise when it is asked again: no answer, too many requests, a server that starts or is overloaded."""

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def answered(questions: Sequence[Question], ask: Callable[[Question], Answer], at_once: int = AT_ONCE) -> list[Answer]:
    """One answer per question, in order; raises the first error, after which nothing more is asked."""
    left = deque(enumerate(questions))
    told: SimpleQueue[tuple[int, Answer] | Exception] = SimpleQueue()

    def work() -> None:
        while left:
            try:
                place, question = left.popleft()
                told.put((place, ask(question)))
            except IndexError:  # another thread took the last
                return
            except Exception as error:  # raised where all were asked
                told.put(error)
                return

    for _ in range(min(at_once, len(questions))):
        threading.Thread(target=work, name="asking", daemon=True).start()  # which Ctrl-C does not wait for
    answers: dict[int, Answer] = {}
    try:
        while len(answers) < len(questions):
            found = told.get()
            if isinstance(found, Exception):
                raise found
            place, answers[place] = found
    finally:
        left.clear()
    return [answers[place] for place in range(len(questions))]


def patiently(ask: Callable[[], Answer], waits: Sequence[float] = WAITS) -> Answer:
    """The answer of a try that gets one; raises Unanswered for what will not pass, and where it has not passed by the last."""
    for wait in waits:
        try:
            return ask()
        except Unanswered as error:
            if error.code not in PASSING:
                raise
            time.sleep(min(max(wait, error.later), LONGEST_WAIT))
    return ask()

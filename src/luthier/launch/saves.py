"""Being told of a run's checkpoints from outside the processes that train it: by its events."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from luthier.core import jsonl
from luthier.runs.store import RunFolder

SECONDS_BETWEEN_LOOKS = 0.5
SAVED = {"saved", "finished"}


@contextmanager
def told_of_saves(run: RunFolder, tell: Callable[[], None], seconds_between_looks: float = SECONDS_BETWEEN_LOOKS) -> Iterator[None]:
    """While it is open, `tell` is called after each save of the run, and once more at the end, when all is written.

    Where it fails it is called again with the next save; the last failure is raised. Training does not wait for it.
    """
    over = threading.Event()
    known = num_saves(run)

    def follow(known: int) -> None:
        while not over.wait(seconds_between_looks):
            if (found := num_saves(run)) > known and _went_well(tell):
                known = found

    following = threading.Thread(target=follow, args=[known], name="told of saves", daemon=True)
    following.start()
    try:
        yield
    finally:
        over.set()
        following.join()
        tell()


def _went_well(tell: Callable[[], None]) -> bool:
    """A host that cannot keep what was saved just now may a moment later."""
    try:
        tell()
    except (OSError, RuntimeError):
        return False
    return True


def num_saves(run: RunFolder) -> int:
    """How often the run has left something worth keeping."""
    return sum(record.get("event") in SAVED for record in jsonl.salvage(run.events).records)

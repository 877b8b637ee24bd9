"""Memory that is short on one rank: all ranks learn of it, and take smaller micro batches together."""

from collections.abc import Iterator
from contextlib import contextmanager

from luthier.model.peak import is_out_of_memory
from luthier.train.ranks import Ranks
from luthier.train.step import TooLarge


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Where memory is too short for one rank to do what stands within, all raise TooLarge. Within, no rank waits for another."""
    short = ""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        short = str(error).partition("\n")[0] or type(error).__name__
    if any(ranks.any([bool(short)])):
        raise TooLarge(short or "another rank had no memory")

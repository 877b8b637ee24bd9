"""What stays loaded in this process for the runs that follow: a plan may count on it as on what is free."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_bytes: ContextVar[int] = ContextVar("bytes that stay loaded", default=0)


def resident_bytes() -> int:
    """Bytes of the base that this process keeps; 0 where it keeps none."""
    return _bytes.get()


def stays(num_bytes: int) -> None:
    """So many stay loaded from now on."""
    _bytes.set(num_bytes)


@contextmanager
def afterwards_gone() -> Iterator[None]:
    """After it nothing is loaded any more."""
    try:
        yield
    finally:
        _bytes.set(0)

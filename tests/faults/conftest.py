"""One process to fork others from, for all tests of faults."""

from collections.abc import Iterator

import pytest

from tests.faults.harness import Starter
from tests.train.conftest import workshop

__all__ = ["processes", "workshop"]


@pytest.fixture(scope="session")
def processes() -> Iterator[Starter]:
    """Starts `luthier` processes."""
    begun = Starter()
    yield begun
    begun.close()

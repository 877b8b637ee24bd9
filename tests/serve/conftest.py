"""One server for all tests that leave it as it was."""

from collections.abc import Iterator

import pytest

from tests.serve.workshop import Place, place


@pytest.fixture(scope="package")
def server() -> Iterator[Place]:
    with place() as found:
        yield found

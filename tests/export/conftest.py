"""A workshop per test, with runs and prepared data inside it."""

from tests.train.conftest import workshop

__all__ = ["workshop"]

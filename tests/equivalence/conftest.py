"""The workshop of the training tests."""

from tests.train.conftest import workshop

__all__ = ["workshop"]

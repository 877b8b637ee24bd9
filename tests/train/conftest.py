"""A workshop per test, with runs and prepared data inside it."""

from pathlib import Path

import pytest

from tests.train.workshop import Workshop


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    return Workshop(tmp_path)

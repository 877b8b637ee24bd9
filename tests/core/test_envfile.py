"""Env files: what is read of them, and that nothing of it is shown."""

import os
from pathlib import Path

import pytest

from luthier.core.envfile import give, given, read
from luthier.core.errors import UsageError
from luthier.core.redact import ENV_FILE_NAMES, HIDDEN, redact, secret_line


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / ".env"
    path.write_text(
        "# for the hub\n\nHF_HOME=/models/hub\nexport PLAIN = two words # why\n"
        'QUOTED=\'a # b\'\nEMPTY=\nSPELLED="with \\"quotes\\""\nODD=a#b=$HOME\n'
    )
    return path


def test_lines_are_read_as_a_shell_would_but_for_what_it_expands(file: Path) -> None:
    assert read(file) == {
        "HF_HOME": "/models/hub",
        "PLAIN": "two words",
        "QUOTED": "a # b",
        "EMPTY": "",
        "SPELLED": 'with "quotes"',
        "ODD": "a#b=$HOME",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A=1\nwhat is planted\n", r"\.env:2: this line is not KEY=VALUE"),
        ("A='planted\n", r"\.env:1: the quotes of this line do not close"),
    ],
    ids=["no variable", "open"],
)
def test_a_line_that_is_wrong_is_named_and_not_shown(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / ".env").write_text(text)
    with pytest.raises(UsageError, match=told) as refused:
        read(tmp_path / ".env")
    assert "planted" not in str(refused.value)


def test_a_file_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.env: the env file cannot be read: No such file"):
        give(str(tmp_path / "none.env"))


def test_what_it_sets_is_set_and_hidden_whatever_it_is_called_but_for_paths(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "PLAIN", "WORD", ENV_FILE_NAMES):
        monkeypatch.delenv(name, raising=False)
    file.write_text("WORD=correct-horse-battery\nHF_HOME=/models/hub-of-ours-1\n")
    with given(str(file)):
        assert os.environ["WORD"] == "correct-horse-battery"
        assert redact("it is correct-horse-battery in /models/hub-of-ours-1") == f"it is {HIDDEN} in /models/hub-of-ours-1"
        assert secret_line("model: {base: correct-horse-battery}") == 0  # it may name what a recipe names, too
    assert "WORD" not in os.environ
    assert redact("correct-horse-battery") == "correct-horse-battery"


def test_no_file_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    give("")
    assert dict(os.environ) == before

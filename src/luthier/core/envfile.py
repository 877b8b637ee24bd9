"""Env files: the `KEY=VALUE` lines that must stand in no recipe, given to the processes that train and to nobody else."""

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.core.errors import UsageError
from luthier.core.redact import ENV_FILE_NAMES

LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=\s*(?P<value>.*)", re.ASCII)
NOTHING = ""
"""The recipe's word for no file."""


def read(path: Path) -> dict[str, str]:
    """The file's variables: `KEY=VALUE`, `export KEY='a value'`, `# comment`; nothing in a value is expanded.

    An error names the line, never what stands on it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"the env file cannot be read: {why}", where=str(path), change="name another with --env-file") from error
    found = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if not match:
            raise UsageError("this line is not KEY=VALUE", where=f"{path}:{number}", change="comments begin with #")
        found[match["name"]] = _value(match["value"], f"{path}:{number}")
    return found


def give(file: str) -> None:
    """Set a file's variables for this process and those that it starts; what they hold is in nothing that Luthier writes of itself."""
    if file == NOTHING:
        return
    variables = read(Path(file))
    names = [*filter(None, os.environ.get(ENV_FILE_NAMES, "").split(",")), *variables]
    os.environ.update(variables | {ENV_FILE_NAMES: ",".join(dict.fromkeys(names))})


@contextmanager
def given(file: str) -> Iterator[None]:
    """While it is open, the file's variables are set."""
    before = dict(os.environ)
    give(file)
    try:
        yield
    finally:
        for name, value in dict(os.environ).items():
            if name not in before:
                del os.environ[name]
            elif before[name] != value:
                os.environ[name] = before[name]


def _value(text: str, where: str) -> str:
    """What is quoted as a shell reads it; else the text up to a ` #`."""
    if text[:1] not in ("'", '"'):
        return re.split(r"\s#", text, maxsplit=1)[0].strip()
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        words = []
    if len(words) != 1:
        raise UsageError("the quotes of this line do not close", where=where, change="write KEY='value'")
    return words[0]

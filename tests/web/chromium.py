"""A real browser, and the pages that a command of Luthier serves to it."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.web.workshop import environment_of

CHROMIUM = shutil.which("chromium")
in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path (Debian: apt-get install chromium)"),
]


@contextmanager
def opened() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def link_of(root: Path, *words: str) -> Iterator[str]:
    """The link that `luthier WORDS` prints, over these runs, for as long as it serves; then Ctrl-C ends it in order."""
    command = [sys.executable, "-m", "luthier.cli.main", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment_of(root)) as server:
        assert server.stdout is not None and server.stderr is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
        assert "Traceback" not in server.stderr.read()

"""`luthier serve` as a process: it ends when it is asked to, also while it loads, and says what it cannot do."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "luthier.cli.main", "serve"]


def refused(*words: str) -> str:
    """What it says where the call is wrong."""
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not done.stdout.startswith("ready")
    return done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_order_while_it_loads(number: signal.Signals) -> None:
    with subprocess.Popen([*COMMAND, "demo", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        assert server.stdout.readline().startswith("http://127.0.0.1:")
        server.send_signal(number)
        assert server.wait(timeout=30) == 0
        assert "Traceback" not in server.stderr.read()


def test_what_it_cannot_serve_it_says(tmp_path: Path) -> None:
    assert "neither a run nor a model" in refused("no-such-run", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "cannot be had" in refused("demo", "--port", str(other.getsockname()[1]))
    (tmp_path / "empty").write_text("")
    assert "the file is empty" in refused("demo", "--port", "0", "--token-file", str(tmp_path / "empty"))

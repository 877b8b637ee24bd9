"""A server in a process of its own: real ones, that answer, die, hang, print, and outlive nobody."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from luthier.core.errors import RunError, UsageError
from luthier.serve import child

SERVER = """\
import http.server, os, subprocess, sys, time
way, port = sys.argv[1], int(sys.argv[2])
print("loading the weights, with hf_" + "a" * 30, flush=True)
if way == "dies":
    sys.exit("ValueError: the adapter is of another base")
if way == "hangs":
    time.sleep(600)
if way == "stubborn":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("worker", worker.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        if self.path == "/die":
            os._exit(7)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def port() -> int:
    return child.free_port(0)


def words(way: str, port: int) -> list[str]:
    return [sys.executable, "-c", SERVER, way, str(port)]


def worker_of(log: Path) -> int:
    return int(log.read_text().split("worker ")[1].split()[0])


def is_over(pid: int) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_it_is_waited_for_until_it_answers_and_ends_with_all_that_it_started(tmp_path: Path, port: int) -> None:
    log = tmp_path / "serving" / "log.txt"
    with child.running(words("well", port), {}, log) as server:
        server.until_healthy(f"http://127.0.0.1:{port}/health", 20)
        worker, pid = worker_of(log), server.process.pid
        assert psutil.pid_exists(worker)
    assert is_over(worker) and is_over(pid)


def test_one_that_dies_before_it_answers_is_told_in_its_last_words_without_secrets(tmp_path: Path, port: int) -> None:
    with child.running(words("dies", port), {}, tmp_path / "log.txt") as server, pytest.raises(RunError) as raised:
        server.until_healthy(f"http://127.0.0.1:{port}/health", 20)
    assert "ended before it answered (exit code 1)" in raised.value.what
    assert "ValueError: the adapter is of another base" in raised.value.what
    assert "hf_aaa" not in raised.value.what and "[redacted]" in raised.value.what


def test_one_that_hangs_is_given_up_in_its_time(tmp_path: Path, port: int) -> None:
    with child.running(words("hangs", port), {}, tmp_path / "log.txt") as server:
        with pytest.raises(RunError, match=r"did not answer within 1 s\n    loading the weights"):
            server.until_healthy(f"http://127.0.0.1:{port}/health", 1)
        pid = server.process.pid
    assert is_over(pid)


def test_one_that_heeds_no_signal_is_killed(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "SECONDS_TO_END", 0.5)
    log = tmp_path / "log.txt"
    with child.running(words("stubborn", port), {}, log) as server:
        server.until_healthy(f"http://127.0.0.1:{port}/health", 20)
        worker = worker_of(log)
    assert server.process.returncode == -signal.SIGKILL and is_over(worker)


def test_one_that_ends_while_it_serves_is_an_error_with_how_it_ended(tmp_path: Path, port: int) -> None:
    for ends, told in (("/die", r"by itself \(exit code 7\)"), ("", r"by itself \(killed by SIGKILL\)")):
        with child.running(words("well", port), {}, tmp_path / "log.txt") as server:
            server.until_healthy(f"http://127.0.0.1:{port}/health", 20)
            if ends:
                with suppress(OSError):
                    urlopen(f"http://127.0.0.1:{port}{ends}")
            else:
                server.process.kill()
            with pytest.raises(RunError, match=told):
                server.wait()


def test_its_environment_is_given_and_on_no_command_line(tmp_path: Path) -> None:
    code = "import os; print(os.environ['VLLM_API_KEY'])"
    log = tmp_path / "log.txt"
    with child.running([sys.executable, "-c", code], {"VLLM_API_KEY": "given"}, log) as server:
        server.process.wait()
    assert log.read_text() == "given\n"


def test_a_command_that_is_not_there_is_told() -> None:
    with pytest.raises(RunError, match="cannot be started: No such file"), child.running(["/nowhere/python"], {}, Path(os.devnull)):
        pass


def test_a_port_that_another_has_is_refused_and_0_is_a_free_one(port: int) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(UsageError, match=rf"port {port} cannot be had"):
            child.free_port(port)
    assert child.free_port(0) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's PR_SET_PDEATHSIG")
def test_it_does_not_outlive_a_supervisor_that_is_killed(tmp_path: Path, port: int) -> None:
    supervisor = (
        "import sys, time; from pathlib import Path; from luthier.serve import child\n"
        f"with child.running({words('well', port)!r}, {{}}, Path({str(tmp_path / 'log.txt')!r})) as server:\n"
        f"    server.until_healthy('http://127.0.0.1:{port}/health', 20); print(server.process.pid, flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", supervisor], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    server = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert is_over(server)

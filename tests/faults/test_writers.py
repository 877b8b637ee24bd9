"""A run is trained by one process at a time: a second one is told who has it, and nobody is held up by a dead one."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luthier.runs.store import RunFolder
from tests.faults.harness import ROOT, Ended, Start, Starter, write_recipe

HOLDER = """
import sys
from pathlib import Path
from luthier.runs.store import RunFolder, alone
with alone(RunFolder(Path(sys.argv[1]))):
    print("in", flush=True)
    sys.stdin.read()
"""
CONTENDER = """
import sys, time
from pathlib import Path
from luthier.core.errors import UsageError
from luthier.runs.store import RunFolder, alone
while not Path(sys.argv[2]).exists():
    pass
try:
    with alone(RunFolder(Path(sys.argv[1]))):
        time.sleep(1)
except UsageError:
    sys.exit(2)
"""


class Home:
    """A run that was killed, and a way to train it."""

    def __init__(self, folder: Path, processes: Starter) -> None:
        self.processes, self.words, self.runs = processes, ("train", str(write_recipe(folder))), str(folder / "runs")
        assert self.train(kill_before="os.mkdir /run/checkpoints/step-000003.part").killed

    def train(self, **faults: object) -> Ended:
        return self.processes.run(Start(words=self.words, runs=self.runs, **faults))  # type: ignore[arg-type]

    @property
    def run(self) -> RunFolder:
        return RunFolder(Path(self.runs) / "run")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, processes: Starter) -> Home:
    return Home(tmp_path_factory.mktemp("writers"), processes)


@contextmanager
def held(run: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
    """Another process has the run."""
    command = [sys.executable, "-c", HOLDER, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"in\n"
        yield holder
        holder.kill()


def test_a_second_train_is_told_which_process_has_the_run_where_and_since_when(home: Home) -> None:
    before = home.run.metrics.read_bytes()
    with held(home.run) as holder:
        ended = home.train()
    assert ended.code == 2
    who = rf"process {holder.pid} on {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"
    assert re.search(rf"runs/run: run run is being trained by {who}\n", ended.said), ended.said
    assert home.run.metrics.read_bytes() == before


def test_of_processes_that_begin_at_once_one_gets_the_run(home: Home, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONTENDER, str(home.run.path), str(tmp_path / "go")]
    contenders = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    time.sleep(1)
    (tmp_path / "go").touch()
    assert sorted(contender.wait(timeout=30) for contender in contenders) == [0, 2, 2, 2]


def test_a_file_system_without_locks_is_told_and_nothing_is_trained(home: Home) -> None:
    """seccomp: the kernel answers flock with ENOLCK."""
    before = home.run.metrics.read_bytes()
    ended = home.train(no_locks_from="open /run/lock")
    assert ended.code == 1
    assert "cannot lock files (No locks available): two processes could write the same ones\n  set LUTHIER_RUNS" in ended.said
    assert home.run.metrics.read_bytes() == before


@pytest.mark.parametrize(
    ("pid", "host"), [(1, socket.gethostname()), (os.getpid(), socket.gethostname()), (4000, "elsewhere")], ids=["init", "reused", "copied"]
)
def test_a_lock_that_nobody_holds_is_taken_over_whatever_it_says(home: Home, pid: int, host: str) -> None:
    """Of a dead process whose number another has got, and of a folder that was copied from another machine."""
    home.run.lock.write_text(json.dumps({"pid": pid, "host": host, "since": "2026-01-01T00:00:00+00:00"}) + "\n")
    home.run.pid.write_text(f"{pid}\n")
    assert home.train(kill_before="os.mkdir /run/checkpoints/step-000003.part").killed
    assert json.loads(home.run.lock.read_text())["pid"] == int(home.run.pid.read_text()) != pid


def test_the_run_of_a_killed_process_is_taken_over_at_once(home: Home) -> None:
    with held(home.run) as holder:
        holder.kill()
        holder.wait(timeout=20)
        assert home.run.pid.exists()
        assert home.train().code == 0
    assert home.run.finished
    assert not home.run.pid.exists()

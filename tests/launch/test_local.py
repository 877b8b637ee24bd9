"""A run in the background of this machine: how it is started, known again, and stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from luthier.core.errors import RunError, UsageError
from luthier.launch.backend import Job
from luthier.launch.backends import BACKENDS
from luthier.launch.local import Local
from luthier.runs.process import Named
from luthier.runs.store import RunFolder
from tests.launch.orders import order

LOCAL = Local("local")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "animals").mkdir()
    return RunFolder(tmp_path / "animals")


@pytest.fixture
def job() -> Iterator[Job]:
    """A process that does nothing for a minute, with a child in another session."""
    child = "import subprocess, time; subprocess.Popen(['sleep', '60'], start_new_session=True); print('up', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        named = Named.of(process.pid)
        left = psutil.Process(process.pid).children(recursive=True)
        yield Job(on="local", id=str(process.pid), host=named.host, started=named.started)
        process.kill()
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def over(run: RunFolder, job: Job, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while LOCAL.status(run, job) != "over":
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_process_has_a_session_of_its_own_and_what_it_prints_is_in_the_log(run: RunFolder) -> None:
    run.recipe.write_text("name: animals\nmodell: demo\n")
    job = LOCAL.submit(order(run.path.parent))
    assert os.getsid(int(job.id)) == int(job.id) != os.getsid(0)  # before it is waited for, an ended process still has one
    over(run, job)
    assert "unknown key `modell`" in run.log.read_text()
    assert LOCAL.logs(run, job) == (run.log,)
    with pytest.raises(UsageError, match="run animals is not running"):
        LOCAL.stop(run, job, now=False)


def test_a_later_process_finds_the_job_in_the_run_folder(run: RunFolder, job: Job) -> None:
    assert Job.read(run) is None
    job.write(run)
    found = Job.read(run)
    assert found == job
    assert LOCAL.status(run, job) == "running"
    run.job.write_text("{}")
    with pytest.raises(RunError, match="is not what `luthier launch` wrote"):
        Job.read(run)


def test_another_process_with_the_number_of_one_that_ended_is_not_taken_for_it_nor_stopped(run: RunFolder, job: Job) -> None:
    earlier = job.model_copy(update={"started": job.started - 100})
    assert LOCAL.status(run, earlier) == "over"
    with pytest.raises(UsageError, match="is not running"):
        LOCAL.stop(run, earlier, now=True)
    assert LOCAL.status(run, job) == "running"


def test_a_process_that_was_killed_is_over(run: RunFolder, job: Job) -> None:
    os.kill(int(job.id), signal.SIGKILL)
    over(run, job)


def test_a_job_of_another_machine_is_not_looked_for_here(run: RunFolder, job: Job) -> None:
    elsewhere = job.model_copy(update={"host": "another"})
    assert LOCAL.status(run, elsewhere) == "unknown"
    with pytest.raises(UsageError, match="run animals is on another"):
        LOCAL.stop(run, elsewhere, now=False)


def test_stop_asks_and_now_kills_all_that_was_started(run: RunFolder, job: Job) -> None:
    process = psutil.Process(int(job.id))
    (child,) = process.children()
    LOCAL.stop(run, job, now=True)
    over(run, job)
    assert psutil.wait_procs([child], timeout=10)[1] == [] or child.status() == psutil.STATUS_ZOMBIE


def test_stop_sends_sigterm(run: RunFolder, job: Job) -> None:
    LOCAL.stop(run, job, now=False)
    over(run, job)


def test_what_would_run_is_a_line_that_a_shell_can_run(run: RunFolder) -> None:
    run.recipe.write_text("name: animals\nmodell: demo\n")
    text = LOCAL.text(replace(order(run.path.parent), force=("few-steps",)))
    assert not run.log.exists()
    assert f"-P -m luthier.cli.main train {run.recipe} --force few-steps" in text
    subprocess.run(["bash", "-c", f"{text} wait"], check=True, timeout=60)
    assert "unknown key `modell`" in run.log.read_text()


def test_every_backend_has_its_name() -> None:
    assert sorted(BACKENDS) == ["local", "modal", "ray", "slurm", "torchrun"]

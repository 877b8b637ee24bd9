"""A supervised group: how it ends, what is begun again and what is not, and what signals do to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from luthier.core import jsonl
from luthier.core.errors import NonFiniteError, RecipeError, RunError
from luthier.core.progress import Silent
from luthier.core.signals import SECONDS_OF_ONE
from luthier.launch import group
from luthier.launch.group import Ended, run_group
from luthier.runs.heartbeat import SUPERVISOR, Patience, mark
from luthier.runs.store import RunFolder
from tests.launch.crew import PATIENT, SELF, command


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    yield RunFolder(tmp_path)
    assert of_this(tmp_path) == []  # whatever a test did, no process of its group is left


def of_this(folder: Path) -> list[psutil.Process]:
    """What was started by a supervisor of this run and is still there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(SUPERVISOR, "").endswith(f" {mark(RunFolder(folder))}") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def supervised(run: RunFolder, *scenes: str, restarts: int = 0, patience: Patience = PATIENT) -> Ended:
    return run_group(command(run, *scenes), run, ranks=len(scenes), restarts=restarts, progress=Silent(), patience=patience)


def events(run: RunFolder) -> list[dict[str, object]]:
    return list(jsonl.records(run.events)) if run.events.exists() else []


def attempts(run: RunFolder) -> int:
    return (run.path / "attempts").stat().st_size


def eventually(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


@contextmanager
def supervisor(run: RunFolder, *scenes: str) -> Iterator[subprocess.Popen[str]]:
    """A supervisor in a process of its own, whose ranks are all at work."""
    line = [sys.executable, str(SELF), str(run.path), "supervise", *scenes]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            eventually(lambda: len(list(run.path.glob("ready-*"))) == len(scenes))
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("scenes", [("finish",), ("finish", "finish")], ids=["one", "two"])
def test_ranks_that_finish_leave_nothing_to_tell(run: RunFolder, scenes: tuple[str, ...]) -> None:
    assert supervised(run, *scenes, restarts=2) == Ended(code=0, restarts=0)
    assert events(run) == []


def test_what_a_rank_raised_is_raised_again_and_the_recipe_is_not_tried_twice(run: RunFolder) -> None:
    with pytest.raises(RecipeError) as raised:
        supervised(run, "refuse", restarts=3)
    assert str(raised.value) == "r.yaml:3: lora.r is 0\n  write 8"
    assert attempts(run) == 1


def test_a_loss_that_is_not_finite_is_not_tried_twice(run: RunFolder) -> None:
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        supervised(run, "diverge", restarts=3)
    assert attempts(run) == 1


def test_exit_code_2_is_not_tried_twice(run: RunFolder) -> None:
    with pytest.raises(RunError, match="exit code 2"):
        supervised(run, "exit_with_2", restarts=3)
    assert attempts(run) == 1


def test_of_two_ranks_the_one_that_says_why_is_to_blame(run: RunFolder) -> None:
    with pytest.raises(RecipeError):
        supervised(run, "wait", "refuse", restarts=3)
    assert attempts(run) == 1
    assert [(event["event"], event["rank"]) for event in events(run)] == [("dead", 1)]


def test_a_rank_that_was_killed_is_begun_again(run: RunFolder) -> None:
    assert supervised(run, "be_killed_once", restarts=2) == Ended(code=0, restarts=1)
    first, second = events(run)
    assert (first["event"], first["rank"], first["step"], first["phase"]) == ("dead", 0, 20, "computing")
    assert "killed by SIGKILL (the kernel's out-of-memory killer?)" in str(first["how"])
    assert (second["event"], second["number"]) == ("restarted", 1)
    assert "killed by SIGKILL" in str(second["why"])


def test_without_restarts_the_first_fault_is_the_last(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"rank 0 ended in step 20, computing: killed by SIGKILL"):
        supervised(run, "be_killed")
    assert attempts(run) == 1
    assert [event["event"] for event in events(run)] == ["dead"]


def test_two_failures_in_the_same_step_are_enough(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"the link flapped; it failed in step 3 twice, and got no further between"):
        supervised(run, "crash", restarts=9)
    assert attempts(run) == 2
    assert [event["event"] for event in events(run)] == ["dead", "restarted", "dead", "gave_up"]


def test_progress_between_failures_uses_up_the_restarts_and_the_pauses_between_them_grow(run: RunFolder) -> None:
    with pytest.raises(RunError, match="all restarts are used up"):
        supervised(run, "be_killed_further_each_time", restarts=2, patience=Patience(back_off=0.3))
    assert attempts(run) == 3
    assert [event["step"] for event in events(run) if event["event"] == "dead"] == [1, 2, 3]
    times = [float(str(event["time"])) for event in events(run)]
    assert times[1] - times[0] > 0.3
    assert times[3] - times[2] > 0.6


def test_the_pause_before_a_restart_is_bounded(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "LONGEST_BACK_OFF_SECONDS", 0.1)
    assert supervised(run, "be_killed_once", restarts=1, patience=Patience(back_off=10_000)).restarts == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)], ids=lambda value: str(value)
)
def test_a_signal_is_passed_on_once_to_every_rank_and_its_end_is_no_failure(run: RunFolder, number: signal.Signals, code: int) -> None:
    with supervisor(run, "obey", "obey") as process:
        process.send_signal(number)
        if number != signal.SIGINT:  # a second Ctrl-C means something else
            time.sleep(0.1)
            process.send_signal(number)
        assert process.stdout is not None and process.stdout.read() == f"code {code}\n"
        assert process.wait(timeout=20) == 0
    assert (run.path / "obeyed").read_text() == f"[{number:d}]\n" * 2
    assert events(run) == []


def test_a_signal_that_only_a_rank_got_stops_the_run_too(run: RunFolder) -> None:
    with supervisor(run, "obey") as process:
        rank = int(next(run.path.glob("ready-*")).name.partition("-")[2])
        os.kill(rank, signal.SIGTERM)
        assert process.stdout is not None and process.stdout.read() == "code 143\n"


def test_a_signal_before_the_first_beat_arrives_with_it(run: RunFolder) -> None:
    line = [sys.executable, str(SELF), str(run.path), "supervise", "obey"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        eventually(lambda: len(of_this(run.path)) > 0)
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.read() == "code 143\n"


def test_a_second_ctrl_c_kills_at_once(run: RunFolder) -> None:
    with supervisor(run, "obey_slowly", "obey_slowly") as process:
        process.send_signal(signal.SIGINT)
        eventually((run.path / "saving").exists)
        assert process.poll() is None
        time.sleep(1.1 * SECONDS_OF_ONE)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None and process.stdout.read() == "code 130\n"
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("scenes", [("abort_when_done",), ("finish", "abort_when_done")], ids=["one", "two"])
def test_a_rank_that_crashes_when_its_work_is_done_is_no_failure_but_recorded(run: RunFolder, scenes: tuple[str, ...]) -> None:
    assert supervised(run, *scenes) == Ended(code=0, restarts=0)
    assert [event["event"] for event in events(run)] == ["dead"]


class Impatient(Silent):
    """A user who stops the run as soon as he is told of a fault."""

    def say(self, line: str) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_stop_that_is_asked_for_before_a_restart_is_heard(run: RunFolder) -> None:
    before = signal.getsignal(signal.SIGTERM)
    ended = run_group(command(run, "crash"), run, ranks=1, restarts=9, progress=Impatient(), patience=Patience(back_off=30))
    assert ended == Ended(code=143, restarts=0)
    assert attempts(run) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_ranks_that_cannot_answer_yet_are_stopped_by_the_signal_itself(run: RunFolder) -> None:
    with supervisor(run, "load", "load") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None and process.stdout.read() == "code 143\n"


def test_when_the_supervisor_is_killed_its_ranks_end(run: RunFolder) -> None:
    with supervisor(run, "compute", "compute") as process:
        assert len(of_this(run.path)) >= 3
        ranks = [psutil.Process(int(path.name.partition("-")[2])) for path in run.path.glob("ready-*")]
        process.kill()
        process.wait(timeout=10)
        _, alive = psutil.wait_procs(ranks, timeout=5)
        assert alive == []
    assert supervised(run, "finish").code == 0  # which ends what the ranks had started, too


def test_a_stopped_rank_of_a_killed_supervisor_is_ended_by_the_next_one(run: RunFolder) -> None:
    with supervisor(run, "compute") as process:
        rank = psutil.Process(int(next(run.path.glob("ready-*")).name.partition("-")[2]))
        rank.suspend()
        process.kill()
        process.wait(timeout=10)
        end = time.monotonic() + 5
        while rank.status() != psutil.STATUS_STOPPED and time.monotonic() < end:  # a busy machine delivers late
            time.sleep(0.02)
        assert rank.status() == psutil.STATUS_STOPPED
        assert supervised(run, "finish") == Ended(code=0, restarts=0)
        assert of_this(run.path) == []


def test_what_a_rank_started_ends_with_the_group_in_whatever_session_it_is(run: RunFolder) -> None:
    with supervisor(run, "compute") as process:
        child = psutil.Process(int((run.path / "child").read_text()))
        process.send_signal(signal.SIGINT)
        time.sleep(1.1 * SECONDS_OF_ONE)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
        assert child not in of_this(run.path)

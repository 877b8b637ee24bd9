"""A rank that hangs is named with its Python stack; a dead one ends the others within seconds; a run may begin again. Real processes."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from luthier.core import jsonl
from luthier.core.errors import RunError
from luthier.core.progress import Silent
from luthier.launch.group import Ended, run_group
from luthier.runs.heartbeat import Patience, beats
from luthier.runs.store import RunFolder
from tests.launch.crew import HASTY, PATIENT, SELF, command
from tests.launch.test_group import eventually, of_this


class Heard(Silent):
    """What a user is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    yield RunFolder(tmp_path)
    assert of_this(tmp_path) == []


def hang_of(run: RunFolder, *scenes: str, patience: Patience = HASTY) -> dict[str, Any]:
    """The event of a hang that ended a run without restarts."""
    with pytest.raises(RunError, match="hangs"):
        run_group(command(run, *scenes), run, ranks=len(scenes), restarts=0, progress=Silent(), patience=patience)
    (event,) = jsonl.records(run.events)
    assert event["event"] == "hang"
    return event


def test_a_rank_that_stalls_is_named_with_the_line_it_stands_in(run: RunFolder) -> None:
    event = hang_of(run, "stall")
    assert (event["rank"], event["phase"], event["step"]) == (0, "computing", 7)
    assert 1 < event["seconds"] < 5
    assert "in count_sheep" in event["stack"]
    assert "in stall" in event["stack"]


def test_the_one_that_stalls_is_named_and_not_those_that_wait_for_it(run: RunFolder) -> None:
    event = hang_of(run, "wait", "stall", "wait")
    assert event["rank"] == 1
    assert "in count_sheep" in event["stack"]
    assert "in wait" not in event["stack"]


def test_where_all_wait_the_one_that_waits_longest_is_named(run: RunFolder) -> None:
    event = hang_of(run, "wait", "wait")
    assert event["phase"] == "waiting"
    assert "in wait" in event["stack"]


def test_waiting_for_a_rank_that_takes_long_and_may_is_no_hang(run: RunFolder) -> None:
    """Rank 0 waits for 3 s, in the last half second of which both do; its patience is 1 s."""
    assert run_group(command(run, "meet", "meet_late"), run, ranks=2, restarts=0, progress=Silent(), patience=HASTY) == Ended(
        code=0, restarts=0
    )


def test_a_stopped_rank_cannot_show_its_stack_and_that_is_said(run: RunFolder) -> None:
    event = hang_of(run, "wait", "stop_oneself")
    assert event["rank"] == 1
    assert event["stack"] == "it is stopped (SIGSTOP), and cannot show its stack"


def test_a_rank_that_does_not_even_begin_is_named(run: RunFolder) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(RunError, match=r"rank 0 hangs in step 0, loading: no sign of life for [12] s"):
        run_group(sleeper, run, ranks=1, restarts=0, progress=Silent(), patience=Patience(phases={"loading": 1.0}, grace=0.5))


def test_a_run_that_hung_is_begun_again_and_finishes(run: RunFolder) -> None:
    heard = Heard()
    ended = run_group(command(run, "stall_once"), run, ranks=1, restarts=2, progress=heard, patience=HASTY)
    assert ended == Ended(code=0, restarts=1)
    assert [event["event"] for event in jsonl.records(run.events)] == ["hang", "restarted"]
    assert "rank 0 hangs in step 7, computing" in heard.lines[0]
    assert "in count_sheep" in heard.lines[0]
    assert heard.lines[1] == "begun again from the last checkpoint: restart 1 of 2"


def test_a_run_that_hangs_in_the_same_step_again_is_given_up(run: RunFolder) -> None:
    with pytest.raises(RunError, match="failed in step 7 twice"):
        run_group(command(run, "stall"), run, ranks=1, restarts=5, progress=Silent(), patience=HASTY)
    assert (run.path / "attempts").stat().st_size == 2


def test_a_rank_that_has_done_its_work_and_does_not_exit_is_no_failure(run: RunFolder) -> None:
    ended = run_group(command(run, "stall_when_done"), run, ranks=1, restarts=0, progress=Silent(), patience=HASTY)
    assert ended == Ended(code=0, restarts=0)
    assert [event["event"] for event in jsonl.records(run.events)] == ["hang"]


def watch_for_death(run: RunFolder, rank: int, seen: list[float]) -> None:
    """Note when the process of a rank ends."""
    eventually(lambda: rank in beats(run))
    process = psutil.Process(beats(run)[rank].pid)
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.02)
    seen.append(time.time())


@pytest.mark.parametrize("other", ["wait", "wait_deafly"])
def test_a_rank_that_is_killed_ends_the_other_within_five_seconds(run: RunFolder, other: str) -> None:
    died: list[float] = []
    watch = threading.Thread(target=watch_for_death, args=[run, 1, died])
    watch.start()
    with pytest.raises(RunError, match=r"rank 1 ended in step 20, computing: gone without a word, as by SIGKILL"):
        run_group(command(run, other, "be_killed"), run, ranks=2, restarts=0, progress=Silent())
    ended = time.time()
    watch.join(timeout=10)
    assert ended - died[0] < 5
    (event,) = jsonl.records(run.events)
    assert (event["event"], event["rank"]) == ("dead", 1)


def test_a_launcher_that_is_killed_leaves_no_ranks(run: RunFolder) -> None:
    def kill_launcher() -> None:
        eventually(lambda: len(beats(run)) == 2)
        psutil.Process(beats(run)[0].pid).parent().send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_launcher)
    killer.start()
    with pytest.raises(RunError, match=r"what started the ranks ended in step \d, \w+: killed by SIGKILL"):
        run_group(command(run, "wait", "wait"), run, ranks=2, restarts=0, progress=Silent(), patience=PATIENT)
    killer.join(timeout=10)


@pytest.mark.slow
def test_under_torchrun_a_killed_rank_ends_the_other_within_five_seconds_and_the_run_is_begun_again(run: RunFolder, tmp_path: Path) -> None:
    """torchrun itself would wait 30 s for a rank that does not answer SIGTERM."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, runpy, sys\n"
        f"sys.argv[1:] = [{str(run.path)!r}, os.environ['RANK'], ['wait_deafly_first', 'be_killed_once'][int(os.environ['RANK'])]]\n"
        f"runpy.run_path({str(SELF)!r}, run_name='__main__')\n"
    )
    died: list[float] = []
    watch = threading.Thread(target=watch_for_death, args=[run, 1, died])
    watch.start()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ended = run_group(torchrun, run, ranks=2, restarts=1, progress=Silent(), patience=PATIENT)
    assert ended == Ended(code=0, restarts=1)
    dead, restarted = jsonl.records(run.events)
    assert (dead["event"], dead["rank"], restarted["event"]) == ("dead", 1, "restarted")
    watch.join(timeout=10)
    assert restarted["time"] - died[0] < 5

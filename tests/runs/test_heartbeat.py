"""Heartbeats: what readers find, what a beat costs, and how a process shows its stack."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.core.errors import NonFiniteError, RecipeError
from luthier.core.files import DiskError
from luthier.core.signals import Interrupted
from luthier.runs import heartbeat
from luthier.runs.heartbeat import Beat, Heartbeat, LastWords, beat_file, beats, stack_file
from luthier.runs.store import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_a_beat_says_who_does_what_since_when(run: RunFolder) -> None:
    with Heartbeat(run, 3) as heart:
        heart.beat("validating", 12)
        beat = beats(run)[3]
    assert (beat.rank, beat.pid, beat.phase, beat.step, beat.usual_seconds) == (3, os.getpid(), "validating", 12, 0)
    assert abs(beat.time - time.time()) < 5
    process = beat.process()
    assert process is not None and process.pid == os.getpid()


def test_each_rank_has_a_beat_of_its_own(run: RunFolder) -> None:
    with Heartbeat(run, 0) as first, Heartbeat(run, 1) as second:
        first.beat("waiting", 5)
        second.beat("computing", 5)
        assert {rank: beat.phase for rank, beat in beats(run).items()} == {0: "waiting", 1: "computing"}


def test_a_change_is_written_at_once_and_the_same_again_only_after_a_while(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Heartbeat(run, 0) as heart:
        heart.beat("computing", 1)
        written = beats(run)[0]
        heart.beat("computing", 1)
        assert beats(run)[0] == written
        heart.beat("saving", 1)
        assert beats(run)[0].phase == "saving"
        now[0] += heartbeat.SECONDS_BETWEEN
        before = beats(run)[0].time
        heart.beat("saving", 1)
        assert beats(run)[0].time > before


def test_the_usual_step_is_the_median_of_recent_ones(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Heartbeat(run, 0) as heart:
        for step, seconds in enumerate([40.0, 2.0, 2.0, 300.0, 3.0, 3.0, 3.0], start=51):  # a first one, one with a validation
            heart.beat("computing", step)
            now[0] += seconds
        heart.beat("computing", 58)
        assert beats(run)[0].usual_seconds == 3
        for step in range(58, 58 + heartbeat.STEPS_REMEMBERED + 1):
            heart.beat("computing", step)
            now[0] += 9
        assert beats(run)[0].usual_seconds == 9


def test_a_torn_file_is_left_out(run: RunFolder) -> None:
    with Heartbeat(run, 0) as heart:
        heart.beat("computing", 7)
        whole = beat_file(run, 0).read_bytes()
        for cut in (0, 1, len(whole.rstrip()) // 2, len(whole.rstrip()) - 1):
            beat_file(run, 0).write_bytes(whole[:cut])
            assert beats(run) == {}
        beat_file(run, 1).write_text('{"rank": 1, "pid": -1}')
        beat_file(run, 0).write_bytes(whole)
        assert list(beats(run)) == [0]


def test_a_shorter_beat_leaves_nothing_of_a_longer_one(run: RunFolder) -> None:
    heart = Heartbeat(run, 0)
    heart.__exit__(RuntimeError, RuntimeError("x" * 2000), None)
    with Heartbeat(run, 0) as heart:
        heart.beat("waiting", 1)
        assert beats(run)[0].last_words is None


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (None, LastWords(code=0)),
        (
            RecipeError("bad", where="r.yaml:3", change="mend"),
            LastWords(code=2, kind="RecipeError", what="bad", where="r.yaml:3", change="mend"),
        ),
        (NonFiniteError("nan"), LastWords(code=1, kind="NonFiniteError", what="nan")),
        (RuntimeError("CUDA error"), LastWords(code=1, kind="RuntimeError", what="CUDA error")),
        (Interrupted(signal.SIGUSR1), LastWords(code=138)),
        (KeyboardInterrupt(), LastWords(code=130)),
        (SystemExit(143), LastWords(code=143)),
        (SystemExit("no"), LastWords(code=1)),
        (SystemExit(), LastWords(code=0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_last_words_say_how_a_rank_ended(run: RunFolder, raised: BaseException | None, words: LastWords) -> None:
    try:
        with Heartbeat(run, 0) as heart:
            heart.beat("saving", 4)
            if raised:
                raise raised
    except BaseException as error:
        assert error is raised
    beat = beats(run)[0]
    assert (beat.phase, beat.step, beat.last_words) == ("saving", 4, words)


def test_an_error_of_luthiers_is_itself_again() -> None:
    error = LastWords.of(RecipeError("bad", where="r.yaml:3", change="mend")).error
    assert isinstance(error, RecipeError)
    assert str(error) == "r.yaml:3: bad\n  mend"
    assert LastWords.of(ValueError("bad")).error is None
    assert isinstance(LastWords.of(DiskError("the disk is full")).error, DiskError)


def test_a_process_that_is_gone_or_another_with_its_number_is_not_taken_for_it(run: RunFolder) -> None:
    with Heartbeat(run, 0), subprocess.Popen(["sleep", "60"]) as other:
        beat = beats(run)[0]
        assert Beat(**{**dict(beat), "pid": other.pid, "started": beat.started - 60}).process() is None
        assert Beat(**{**dict(beat), "host": "elsewhere"}).process() is None
        other.kill()
        other.wait(timeout=10)
        assert Beat(**{**dict(beat), "pid": other.pid}).process() is None


def test_the_beats_of_a_thousand_steps_of_ten_micro_batches_cost_a_tenth_of_a_second_or_so(run: RunFolder) -> None:
    with Heartbeat(run, 0) as heart:
        began = time.process_time()
        for step in range(1000):
            for _ in range(10):
                heart.beat("computing", step)
        assert time.process_time() - began < 0.5  # 0.012 s on a quiet Zen 5


LISTENER = """
import sys, time
from pathlib import Path
from luthier.runs.heartbeat import listen
from luthier.runs.store import RunFolder

def count_sheep():
    print("asleep", flush=True)
    time.sleep(60)

listen(RunFolder(Path(sys.argv[1])), 0)
count_sheep()
"""


def test_a_process_that_listens_shows_its_stack_each_time_it_is_asked(run: RunFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", LISTENER, str(run.path)], stdout=subprocess.PIPE) as rank:
        try:
            assert rank.stdout is not None and rank.stdout.readline() == b"asleep\n"
            for times in (1, 2):
                rank.send_signal(signal.SIGUSR2)
                end = time.monotonic() + 10
                while stack_file(run, 0).read_text().count("in count_sheep") < times:
                    assert time.monotonic() < end
                    time.sleep(0.02)
            assert rank.poll() is None
        finally:
            rank.kill()


def test_a_process_whose_supervisor_is_not_above_it_ends_by_itself(run: RunFolder) -> None:
    environment = {**os.environ, heartbeat.SUPERVISOR: f"{2**22 + 1} {run.path}"}  # above the highest number a process can have
    done = subprocess.run([sys.executable, "-c", LISTENER, str(run.path)], env=environment, capture_output=True, timeout=30)
    assert done.returncode == 1
    assert b"its supervisor, process 4194305, is gone" in done.stderr


def test_what_a_rank_does_goes_on_when_it_has_waited(run: RunFolder) -> None:
    with Heartbeat(run, 0) as heart:
        heart.beat("validating", 4)
        with heart.waiting():
            assert (beats(run)[0].phase, beats(run)[0].step) == ("waiting", 4)
        assert (beats(run)[0].phase, beats(run)[0].step) == ("validating", 4)


def test_what_a_rank_has_waited_for_others_adds_up(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Heartbeat(run, 0) as heart:
        for seconds in (0.5, 2.0):
            with heart.waiting():
                now[0] += seconds
            now[0] += 7.0  # of its own work
        assert heart.waited_seconds == 2.5


def test_a_rank_that_fails_while_it_waits_says_so(run: RunFolder) -> None:
    with pytest.raises(RuntimeError), Heartbeat(run, 0) as heart, heart.waiting():
        raise RuntimeError
    assert beats(run)[0].phase == "waiting"

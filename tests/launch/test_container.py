"""What sees to a run in a rented container: it keeps what is saved, minds the time, and lets a run save that is taken away."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from luthier.launch.container import TimeIsOver, see_to
from luthier.launch.saves import told_of_saves
from luthier.runs.store import RunFolder

TRAIN = """\
import signal, sys, time
from pathlib import Path
from luthier.runs.store import RunFolder
run = RunFolder(Path(sys.argv[1]))
def end(number, frame):
    run.event("saved", step=9)
    print("saved for", signal.Signals(number).name, flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGUSR1, end)
signal.signal(signal.SIGTERM, end)
for step in (1, 2, 3):
    run.event("saved", step=step)
    print("step", step, flush=True)
    while (run.path / "kept").read_text().count("x") < step:
        time.sleep(0.02)
"""
"""Goes on once a save is kept."""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


class Kept:
    """A volume that notes how many saves it was told to keep; `broken` times it cannot."""

    def __init__(self, run: RunFolder, broken: int = 0) -> None:
        self.run, self.broken, self.saves = run, broken, list[int]()
        (run.path / "kept").touch()

    def __call__(self) -> None:
        if self.broken:
            self.broken -= 1
            raise RuntimeError("the volume is busy")
        self.saves.append(self.run.events.read_text().count('"saved"'))
        (self.run.path / "kept").write_text("x" * len(self.saves))


def train(run: RunFolder, more: str = "") -> list[str]:
    return [sys.executable, "-c", TRAIN + more, str(run.path)]


def test_every_save_is_kept_and_the_log_is_copied(run: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    kept = Kept(run)
    assert see_to(run, train(run), seconds=60, keep=kept) == 0
    assert kept.saves == [1, 2, 3, 3]  # and once more at the end
    assert run.log.read_text() == "step 1\nstep 2\nstep 3\n" == capfd.readouterr().out


def test_before_the_time_limit_the_run_saves_what_is_kept_and_is_to_be_begun_again(run: RunFolder) -> None:
    kept = Kept(run)
    with pytest.raises(TimeIsOver):
        see_to(run, train(run, "time.sleep(60)"), seconds=4, keep=kept)
    assert run.log.read_text().endswith("saved for SIGUSR1\n")
    assert kept.saves[-1] == run.events.read_text().count('"saved"')


def test_a_run_that_saves_nothing_in_its_time_is_not_paid_for_again(run: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    stuck = "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138)); time.sleep(60)"
    assert see_to(run, [sys.executable, "-c", stuck], seconds=2, keep=lambda: None) == 138
    assert "raise launch.timeout" in capfd.readouterr().err


def test_a_run_that_fails_is_not_begun_again_by_the_host(run: RunFolder) -> None:
    kept = Kept(run)
    assert see_to(run, [sys.executable, "-c", "import sys; sys.exit('no')"], seconds=60, keep=lambda: kept.saves.append(0)) == 1
    assert kept.saves == [0]


def test_a_call_that_is_cancelled_lets_the_run_save(run: RunFolder) -> None:
    """Modal raises an exception in the main thread, by a signal."""

    class Cancelled(BaseException):
        pass

    def cancel(number: int, frame: object) -> None:
        raise Cancelled

    before = signal.signal(signal.SIGUSR1, cancel)
    kept = Kept(run)

    def cancel_after_a_step() -> None:
        while not run.log.exists() or "step" not in run.log.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=cancel_after_a_step).start()
    try:
        with pytest.raises(Cancelled):
            see_to(run, train(run, "time.sleep(60)"), seconds=60, keep=kept)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert run.log.read_text().endswith("saved for SIGTERM\n")
    assert kept.saves[-1] == run.events.read_text().count('"saved"')


def test_a_volume_that_cannot_keep_a_save_is_asked_again_and_training_goes_on(run: RunFolder) -> None:
    kept = Kept(run, broken=2)
    with told_of_saves(run, kept, seconds_between_looks=0.05):
        run.event("saved", step=1)
        end = time.monotonic() + 10
        while not kept.saves:
            assert time.monotonic() < end
            time.sleep(0.02)
    assert kept.saves == [1, 1]


def test_what_cannot_be_kept_at_the_end_is_an_error(run: RunFolder) -> None:
    with pytest.raises(RuntimeError, match="the volume is busy"), told_of_saves(run, Kept(run, broken=9), seconds_between_looks=5):
        run.event("saved", step=1)


def test_saves_from_before_are_not_told_again(run: RunFolder) -> None:
    run.event("saved", step=1)
    kept = Kept(run)
    with told_of_saves(run, kept, seconds_between_looks=0.02):
        time.sleep(0.3)
    assert kept.saves == [1]  # the one at the end

"""The verbs of a run that is there, as people and programs see them."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from luthier import flow
from luthier.cli.curves import plot
from luthier.cli.main import app
from luthier.cli.screen import page as screen
from luthier.cli.screen import watch
from luthier.runs import control
from luthier.runs.store import RunFolder, alone
from luthier.watch.series import Points
from tests.runs.recorded import beat, held_out, line, planned, recorded, rewarded, run_in

HOLD = """
import sys
from pathlib import Path
from luthier.runs.store import RunFolder, alone
with alone(RunFolder(Path(sys.argv[1]))):
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run after 40 of 100 steps."""
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    run = run_in(tmp_path / "runs" / "animals")
    planned(run, 100)
    recorded(run, [*(line(step, 3.0 - step / 20) for step in range(1, 41)), line(40, 1.25, "validation")])
    run.event("saved", step=40, checkpoint="step-000040", best=True, seconds=0.5)
    return run


@pytest.fixture
def running(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    monkeypatch.delenv("COLUMNS", raising=False)  # which pytest-xdist sets: what is piped is as wide as it has to be
    with alone(run):
        beat(run, step=41)
        yield run


def said(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_status_tells_what_the_curves_show_now(running: RunFolder) -> None:
    recorded(running, [line(step, 3.0 - step / 20, grad_norm=50.0) for step in range(1, 41)])
    assert "gradient-large" in said("status", "animals")
    told = json.loads(said("status", "animals", "--json"))["findings"]
    assert [finding["code"] for finding in told] == ["gradient-large"]


def test_a_damaged_recipe_hides_nothing_else_of_a_status(running: RunFolder) -> None:
    running.recipe.write_text("name: [")
    assert "running" in said("status", "animals")


def test_status_shows_one_run_in_detail_and_all_in_a_table(running: RunFolder) -> None:
    detail = said("status", "animals")
    for part in ("running on ", "40 of 100, epoch 0.50", "1.0000, validation 1.2500, gap -0.2250", "500 tokens/s, 7 MB, 90% busy"):
        assert part in detail
    assert "2 min of training" in detail and "0 computing" in detail
    (row,) = [text for text in said("status").splitlines() if text.startswith("animals")]
    assert row.split()[:11] == ["animals", "running", "40/100", "0.50", "1.0000", "1.2500", "-0.2250", "500", "7", "MB", "2"]
    assert json.loads(said("status", "animals", "--json"))["validation_loss"] == 1.25
    assert [each["name"] for each in json.loads(said("status", "--json"))["runs"]] == ["animals"]


def test_the_table_of_all_runs_has_what_curves_show_and_is_as_wide_as_the_terminal(
    running: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(running, [line(step, 3.0 - step / 20, grad_norm=50.0) for step in range(1, 41)])
    wide = said("status").splitlines()
    assert wide[0].split()[3:] == ["epoch", "loss", "validation", "gap", "tokens/s", "memory", "left", "saved", "moved", "findings"]
    assert wide[1].rstrip().endswith("gradient-large") and len(wide) == 2
    monkeypatch.setenv("COLUMNS", "80")
    narrow = said("status").splitlines()
    assert max(map(len, narrow)) <= 80 and "gradient-large" in narrow[1]
    assert "a wider terminal shows epoch, memory, gap" in " ".join(narrow)


def test_a_run_whose_answers_are_rewarded_shows_rewards_and_others_beside_it_do_not(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # room for all of the table
    other = run_in(run.path.parent / "reinforced")
    planned(other, 100)
    recorded(other, [rewarded(step, 0.5) for step in range(1, 41)])
    held_out(other, 40, 0.75)
    detail = said("status", "reinforced")
    assert "0.5, held out 0.75 (0.7 … 0.8)" in detail and "gap" not in detail
    rows = {text.split()[0]: text.split() for text in said("status").splitlines()}
    assert rows["run"][3:8] == ["epoch", "loss", "validation", "gap", "reward"] and "–" in rows["animals"]
    assert rows["reinforced"][4:9] == ["0.0100", "–", "–", "0.5", "0.75"]
    found = flow.seen("reinforced")
    Console(width=120, height=40).print(screen(flow.look(found), found.series(), found.events(), width=120, height=40), height=40)
    shown = capsys.readouterr().out
    assert "train and validation reward" in shown and "groups without a signal, %" in shown and "device use" not in shown
    assert "reward 0.5, held out 0.75 (0.7 … 0.8)" in said("watch", "reinforced")


def test_without_runs_it_is_said_how_to_begin_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path))
    assert said("status") == "no run yet: luthier train R, or luthier launch R, begins one\n"


def test_watch_prints_lines_where_there_is_no_terminal_until_the_run_is_over(run: RunFolder) -> None:
    run.event("interrupted", step=40, signal="SIGTERM")
    lines = said("watch", "animals").splitlines()
    saved, interrupted = (text[9:] for text in lines[1:3])
    assert (saved, interrupted) == ("saved step 40, checkpoint step-000040, best True, seconds 0.5", "interrupted step 40, signal SIGTERM")
    assert lines[-1].startswith("stopped, step 40 of 100 · loss 1.0000, validation 1.2500 · 500 tokens/s, 7 MB, 90% busy · by SIGTERM")


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "Ctrl-C"])
def test_watch_draws_the_run_and_is_left_without_touching_it(running: RunFolder, key: bytes) -> None:
    before = {path.name: path.read_bytes() for path in running.path.iterdir() if path.is_file()}
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "45"}
    command = [sys.executable, "-m", "luthier.cli.main", "watch", "animals"]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True, preexec_fn=own)
    os.close(theirs)
    try:
        shown = read_until(ours, "q leaves", 30)
        for part in ("luthier watch animals", "40 of 100", "validation", "tokens/s", "device use", "saved step 40", "step 40"):
            assert part in shown
        os.write(ours, key)
        end = time.monotonic() + 10
        while child.poll() is None and time.monotonic() < end:
            if select.select([ours], [], [], 0.05)[0]:
                with suppress(OSError):  # a terminal that nobody reads holds up who writes into it; one that nobody has is no error here
                    os.read(ours, 1 << 16)
        assert child.poll() == 0
    finally:
        child.kill()
        child.wait()
    os.close(ours)
    assert {path.name: path.read_bytes() for path in running.path.iterdir() if path.is_file()} == before
    assert control.wished(running) == "nothing"


def own() -> None:
    """Let the terminal be this process's own, so that Ctrl-C in it is a signal to it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(file: int, text: str, seconds: float) -> str:
    """What a terminal was told, until it was told this."""
    shown, end = "", time.monotonic() + seconds
    while text not in shown:
        assert time.monotonic() < end, shown
        if select.select([file], [], [], 0.2)[0]:
            shown += os.read(file, 1 << 16).decode("utf-8", "replace")
    return shown


def test_a_curve_goes_from_the_upper_left_to_the_lower_right() -> None:
    page = plot({"dim": Points(x=np.arange(100.0), y=np.arange(100.0, 0, -1))}, 40, 5).plain.splitlines()
    assert page[0].startswith("      100 ⠉⠑") and page[0].endswith("⠀⠀⠀")
    assert page[4].startswith("        1 ⠀") and page[4][-1] != "⠀"
    assert page[5].split() == ["0", "step", "99"]


def test_a_curve_of_one_point_or_none_can_be_drawn() -> None:
    assert plot({}, 40, 5).plain == "no step is recorded yet"
    page = plot({"dim": Points(x=np.array([3.0]), y=np.array([2.0]))}, 40, 5).plain.splitlines()
    assert any(character > "⠀" for character in page[2][10:])


def test_save_and_stop_say_where_nothing_runs(run: RunFolder) -> None:
    for verb in ("save", "stop"):
        command = [sys.executable, "-m", "luthier.cli.main", verb, "animals"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert "run animals was not begun: nothing of it runs" in done.stderr


def test_stop_now_ends_a_run_of_this_machine_that_was_begun_in_a_terminal(run: RunFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        assert said("stop", "animals", "--now") == "run animals is killed: no step of it was saved; the same command goes on\n"
        assert holder.wait(timeout=10) == -9


def test_a_watcher_in_lines_tells_each_event_once(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.adapter.mkdir()
    run.event("finished", step=100)
    watch("animals", Console(width=160, highlight=False))
    assert capsys.readouterr().out.count(" saved step 40") == 1

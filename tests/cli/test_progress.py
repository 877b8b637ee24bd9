"""Progress on a terminal is a bar, in a log it is lines."""

import io
import re
import time

from rich.console import Console

from luthier.cli import progress as shown


def test_a_log_gets_one_line_at_the_end_of_quick_work() -> None:
    log = io.StringIO()
    with shown.progress_for(Console(file=log, force_terminal=False)).task("training", 3) as advance:
        for step in range(1, 4):
            advance(step, f"loss {1 / step:.2f}")
    assert log.getvalue().startswith("training 3/3 loss 0.33, 0.")
    assert log.getvalue().count("\n") == 1


def test_a_log_gets_a_line_every_few_seconds_of_slow_work() -> None:
    log = io.StringIO()
    plain = shown.PlainProgress(Console(file=log, force_terminal=False), seconds_between=0.0)
    with plain.task("training", 2) as advance:
        advance(1, "")
        advance(2, "")
    assert [line.split(",")[0] for line in log.getvalue().splitlines()] == ["training 1/2", "training 2/2", "training 2/2"]
    assert "0:00:00 left" in log.getvalue()


def test_a_terminal_gets_a_bar_with_the_text() -> None:
    terminal = io.StringIO()
    with shown.progress_for(Console(file=terminal, force_terminal=True, width=120)).task("training", 3) as advance:
        advance(3, "loss 0.33")
    assert "3/3" in terminal.getvalue()
    assert "loss 0.33" in terminal.getvalue()


def shown_last(*steps: tuple[int, str, float], width: int, total: int, finish: bool = False) -> str:
    """What stands on a terminal of so many columns after these steps (done, text, seconds since the one before)."""
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=width, color_system=None)
    with shown.progress_for(console).task("training", total) as advance:
        for done, text, seconds in steps:
            time.sleep(seconds)
            advance(done, text)
        time.sleep(0.15)  # it is drawn ten times a second
    drawn = [line for line in re.split(r"\x1b\[\??\d*[A-Za-z]|[\r\n]", terminal.getvalue()) if line.strip()]
    assert all(len(line) <= width for line in drawn)
    return drawn[-1]


def test_eighty_columns_show_step_loss_speed_and_what_is_left() -> None:
    text = "loss 12.3456, 123,456 tokens/s"
    line = shown_last((29_998, text, 0), (29_999, text, 0.6), (30_000, text, 0.6), width=80, total=33_600)
    assert re.search(r"^training .*[━╸] +30000/33600 loss 12\.3456, 123,456 tokens/s 0:\d\d:\d\d left$", line), line


def test_a_terminal_says_how_long_finished_work_took() -> None:
    assert re.search(r"3/3 loss 0\.33 in 0:00:01$", shown_last((1, "", 0), (3, "loss 0.33", 1.0), width=80, total=3))


def test_work_that_goes_on_is_told_by_its_own_pace_and_not_by_what_was_done_before() -> None:
    bar = re.search(r"0:0(\d):(\d\d) left$", shown_last((900, "", 0.3), (901, "", 0.6), (902, "", 0.6), width=80, total=1000))
    assert bar and 55 <= 60 * int(bar[1]) + int(bar[2]) <= 180  # 98 parts of 0.6 s; a busy machine is slower
    log = io.StringIO()
    plain = shown.PlainProgress(Console(file=log, force_terminal=False), seconds_between=0.0)
    with plain.task("training", 1000) as advance:
        advance(900, "")
        time.sleep(0.2)
        advance(901, "")
    left = re.search(r"training 901/1000, 0:0(\d):(\d\d) left", log.getvalue())
    assert left and 19 <= 60 * int(left[1]) + int(left[2]) <= 90

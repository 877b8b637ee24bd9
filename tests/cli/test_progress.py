"""Progress on a terminal is a bar, in a log it is lines."""

import io

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
    assert "s left" in log.getvalue()


def test_a_terminal_gets_a_bar_with_the_text() -> None:
    terminal = io.StringIO()
    with shown.progress_for(Console(file=terminal, force_terminal=True, width=120)).task("training", 3) as advance:
        advance(3, "loss 0.33")
    assert "3/3" in terminal.getvalue()
    assert "loss 0.33" in terminal.getvalue()

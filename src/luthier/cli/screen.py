"""`luthier watch`: a run on the whole screen of a terminal, or as lines where there is none. It looks, and touches nothing."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from rich.console import Console, Group
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from luthier import flow
from luthier.cli.curves import plot
from luthier.cli.standing import device, joined, lines, pace, ranks, rewards, state
from luthier.core.redact import redact
from luthier.core.signals import left_by_ctrl_c
from luthier.core.words import duration, loss, small
from luthier.report.curves import held_out_points
from luthier.runs.held_out import held_out
from luthier.runs.status import Status
from luthier.watch.series import Column, Points, Series

SECONDS_BETWEEN_LOOKS = 1.0
POINTS = 600
NEWEST = 8
"""Events that are shown."""
LONGEST = 100
"""Characters of what an event says."""
MOST_LINES = 14
BELOW: tuple[tuple[Column, str, float], ...] = (
    ("tokens_per_second", "tokens/s", 1),
    ("device_utilization", "device use, %", 0.01),
    ("memory_bytes", "memory, GB", 1e9),
)
"""Columns that are drawn small, with what they are called and their unit."""
BELOW_REWARDS: tuple[tuple[Column, str, float], ...] = (
    ("answer_tokens", "tokens of an answer", 1),
    ("entropy", "entropy, nats a token", 1),
    ("silent", "groups without a signal, %", 0.01),
)
"""The same where answers are rewarded."""


def watch(name: str, console: Console) -> None:
    """Show the run until it is over and, on a terminal, until `q` or Ctrl-C."""
    if console.is_terminal and sys.stdin.isatty():
        _on_screen(name, console)
    else:
        _as_lines(name, console)


def page(found: Status, series: Series, events: Sequence[Mapping[str, Any]], *, width: int, height: int) -> Layout:
    """All of the screen."""
    shown = [Text.assemble((f"{name:<9}", "dim"), value) for name, value in lines(found)][:MOST_LINES]
    tall = max(3, height - len(shown) - NEWEST - 10)
    rewarded, below = series.train.measured("reward"), Layout(size=5)
    columns = BELOW_REWARDS if rewarded else BELOW
    below.split_row(*(Layout(Panel(_small(series, column, unit, width // 3 - 4), title=name)) for column, name, unit in columns))
    curves, of = (_rewards(series, events), "reward") if rewarded else (_losses(series), "loss")
    above = Panel(plot(curves, width - 4, tall), title=f"[dim]train[/] and [bold yellow]validation[/] {of}")
    whole = Layout()
    whole.split_column(
        Layout(Panel(Group(*shown), title=f"luthier watch {found.name}"), size=len(shown) + 2),
        Layout(above, size=tall + 3),
        below,
        Layout(Panel(_told(events), title="events", subtitle="q leaves; the run goes on")),
    )
    return whole


def _small(series: Series, column: Column, unit: float, width: int) -> Text:
    points = series.train.thinned(column, POINTS)
    return plot({"green": replace(points, y=points.y / unit)}, width, 2)


def _losses(series: Series) -> dict[str, Points]:
    return {"dim": series.train.thinned("loss", POINTS), "bold yellow": series.validation.thinned("loss", POINTS)}


def _rewards(series: Series, events: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    return {"dim": series.train.thinned("reward", POINTS), "bold yellow": held_out_points(held_out(events))}


def _on_screen(name: str, console: Console) -> None:
    run = flow.seen(name)
    with left_by_ctrl_c(), _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            found, size = flow.look(run), console.size
            live.update(page(found, run.series(), run.events(), width=size.width, height=size.height), refresh=True)
            if pressed(SECONDS_BETWEEN_LOOKS):
                return


def _as_lines(name: str, console: Console) -> None:
    """A line whenever the run has moved on, and one for each event, until it is over."""
    told, before, run = 0, ("", -1), flow.seen(name)
    while True:
        found, events = flow.look(run), run.events()
        for event in events[told:]:
            console.print(_event(event), soft_wrap=True, markup=False)
        told = len(events)
        if before != (now := (str(state(found)), found.step)):
            console.print(_line(found), soft_wrap=True, markup=False)
            before = now
        if not found.moves:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _line(found: Status) -> str:
    left = f"{duration(found.seconds_left)} left" if found.seconds_left else ""
    losses = f"loss {loss(found.train_loss)}, validation {loss(found.validation_loss)}"
    learned = f"reward {rewards(found)}" if found.reward is not None else losses if found.step else ""
    paced = f"{pace(found)} tokens/s{device(found)}" if found.tokens_per_second else ""
    doing = ranks(found) if len(found.ranks) > 1 else ""
    return joined((f"{state(found)}, step {found.step} of {found.total}", learned, paced, left, doing, found.why))


def _told(events: Sequence[Mapping[str, Any]]) -> Text:
    return Text("\n").join(Text(_event(event), overflow="ellipsis", no_wrap=True) for event in events[: -NEWEST - 1 : -1])


def _event(event: Mapping[str, Any]) -> str:
    """`12:31:09 saved step 40`: time, kind, and the small things that it says."""
    at = event.get("time")
    clock = datetime.fromtimestamp(at).strftime("%H:%M:%S") if isinstance(at, float) else "--:--:--"
    return redact(f"{clock} {event.get('event')} {small(event)}")[:LONGEST]


@contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits so many seconds for `q` or Escape, and says whether it came; keys are not echoed while it is open."""
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)

    def pressed(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([file], [], [], left)
            if ready and (not (typed := os.read(file, 64)) or typed in (b"q", b"Q", b"\x1b")):
                return True
        return False

    tty.setcbreak(file)
    try:
        yield pressed
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)

"""Numbers as people read them, and what an event says."""

import time
from collections.abc import Mapping
from typing import Any


def gigabytes(number: float) -> str:
    """`15.2 GB`, `80 MB`, `3.97 kB`: 10⁹, 10⁶ and 10³ bytes."""
    unit, size = next(((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6)) if number >= size), ("kB", 1e3))
    return f"{number / size:.3g} {unit}" if number < 999.5 * size else f"{number / size:.0f} {unit}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `5.1 h`."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def percent(share: float) -> str:
    """`4.4 %`, `37 %`."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def count(number: int, what: str) -> str:
    """`1 save`, `1,200 rows`: the noun in the singular."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def loss(value: float | None) -> str:
    """`0.2418`; a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def gap(value: float | None) -> str:
    """`+0.0213`, of one loss over another; a dash where there is none."""
    return "–" if value is None else f"{value:+.4f}"


def ago(moment: float | None) -> str:
    """`12 s ago`, of a moment in seconds since 1970; a dash where there is none."""
    return "–" if moment is None else f"{duration(round(max(0.0, time.time() - moment)))} ago"


def small(event: Mapping[str, Any]) -> str:
    """`step 40, seconds 0.0873`: the small things that an event says besides its name and time; of a finding its sentence."""
    if {"severity", "message", "code"} <= event.keys():
        return f"{event['severity']}: {event['message']} [{event['code']}]"
    said = {key: value for key, value in event.items() if key not in ("time", "event") and isinstance(value, str | int | float)}
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in said.items())

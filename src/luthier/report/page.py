"""Pages out of templates: everything is escaped, and secrets are hidden. report.html is one of them, and needs no other file."""

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from luthier import __version__
from luthier.core.redact import redact
from luthier.core.words import ago, duration, gap, gigabytes, loss, percent, small
from luthier.report.curves import drawn, svg
from luthier.report.facts import facts
from luthier.report.record import Record
from luthier.runs.held_out import held_out

HERE = Path(__file__).parent
STYLE = HERE / "style.css"
DASH = "–"


def templates(*folders: Path, hides: bool = True) -> Environment:
    """Templates of these folders, and the parts of a run that all pages share; it `hides` secrets in what it is given, before HTML writes
    their letters in another way."""
    found = Environment(
        loader=FileSystemLoader([*folders, HERE / "templates"]),
        autoescape=True,
        finalize=_without_secrets if hides else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update({each.__name__: each for each in SAID})
    return found


def report(record: Record) -> str:
    """The run as one page that needs no other file: curves, plan against fact, data, evaluations, verdict, provenance."""
    charts = [(found.chart.title, svg(found)) for found in drawn(record.series, held_out(record.events))]
    given = {"style": STYLE.read_text(encoding="utf-8"), "charts": charts, "facts": facts(record), "version": __version__}
    return redact(templates().get_template("report.html").render(r=record, now=time.time(), **given))


def _without_secrets(value: object) -> object:
    return redact(value) if type(value) is str else value  # what is markup was made of such values


def whole(value: float | None) -> str:
    """A count: `1,234`."""
    return DASH if value is None else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """`2026-11-29 03:12:09`, where the reader's machine is; a dash for what is no moment."""
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return DASH


def score(value: float | None) -> str:
    """`0.934`."""
    return DASH if value is None else f"{value:.3g}"


SAID: tuple[Callable[..., str], ...] = (ago, clock, duration, gap, gigabytes, loss, percent, score, small, whole)
"""Filters of the templates, by their names."""

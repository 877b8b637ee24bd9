"""The verbs that show a run: its record, its report, and the rows it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core import files
from luthier.core.errors import UsageError
from luthier.flow.watching import status_of, with_diagnosis

if TYPE_CHECKING:
    from luthier.data.inspect import InspectedRow
    from luthier.report.record import Record
    from luthier.watch.series import Series


def record(name: str, known: Series | Literal["none"] = "none", *, diagnose: bool = True) -> Record:
    """Everything that a run's folder tells, for a page, and what its curves show now; no host is asked.

    What is `known` of its metrics is read on from. Without `diagnose` they are not read: at once, however long the run is.
    """
    from luthier.report.record import record as read
    from luthier.runs.store import find
    from luthier.watch.series import Series, read_on

    run = find(name)
    stands = status_of(run, ask_far=False)
    if not diagnose:
        return read(run, stands)
    measured = read_on(run.metrics, Series() if known == "none" else known)
    return read(run, replace(stands, findings=with_diagnosis(run, stands.findings, measured)), measured)


def report(name: str) -> Path:
    """The run's report.html, written anew: one page that needs no other file, to send to somebody."""
    from luthier.report.page import report as page
    from luthier.runs.store import find

    run = find(name)
    with files.told(run.report.name, run.path):
        files.write(run.report, page(record(name)))
    return run.report


def rows(name: str, split: str, numbers: Sequence[int]) -> list[InspectedRow]:
    """Rows of a run's own data as the model sees them, those of these numbers that there are; without transformers, and at once.

    Raises UsageError where the run's data or its tokenizer is not on this machine.
    """
    from luthier.data.decode import decoder
    from luthier.data.inspect import inspect_rows
    from luthier.data.store import Prepared
    from luthier.runs.store import find, own_recipe
    from luthier.runs.summary import DataSummary

    run = find(name)
    if not run.data.exists():
        raise UsageError(f"run {run.name} has no data yet: it is being prepared, or nobody has begun it", where=str(run.path))
    prepared = Prepared(run.path.parent.parent / "prepared" / DataSummary.read(run.data).hash)
    if not (prepared.folder / f"{split}.ids.npy").exists():
        change = "luthier prepare with its recipe makes it again"
        raise UsageError(f"the {split} rows of run {run.name} are not on this machine", where=str(prepared.folder), change=change)
    num_rows = len(prepared.rows(split))
    tokenizer = decoder(own_recipe(run).model, run.adapter)
    return inspect_rows(prepared, tokenizer, split, [number for number in numbers if 0 <= number < num_rows])

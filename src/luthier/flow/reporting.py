"""The verbs that show a run: its record, its report, and the rows it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core import files
from luthier.core.errors import UsageError
from luthier.flow.watching import seen, status_of

if TYPE_CHECKING:
    from luthier.data.inspect import InspectedRow
    from luthier.report.compare import Compared
    from luthier.report.record import Record
    from luthier.watch.seen import Seen


def record(name: str) -> Record:
    """Everything that a run's folder tells, for a page, and what its curves show now; no host is asked."""
    return record_of(seen(name), diagnose=True)


def record_of(run: Seen, *, diagnose: bool) -> Record:
    """`record` of a run that was looked at before. Without `diagnose` its metrics are not read: at once, however long it is."""
    from luthier.report.record import record as read

    stands = status_of(run.run, run.events(), ask_far=False)
    return read(run, run.diagnosed(stands) if diagnose else stands, measured=diagnose)


def compare(names: Sequence[str]) -> Compared:
    """Several runs, held against the first: recipes, metrics of the tuned models with their differences row by row, time and money."""
    from luthier.report.compare import compare as held_together

    runs = list(dict.fromkeys(names))
    if len(runs) < 2:
        raise UsageError("there is nothing to compare with", change="name two runs or more")
    return held_together([record(name) for name in runs])


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

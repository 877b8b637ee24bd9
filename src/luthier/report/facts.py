"""What was planned beside what was measured, in words."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from luthier.core.words import duration, gigabytes
from luthier.report.record import Record
from luthier.runs.planned import Planned, Range
from luthier.watch.series import Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing, as planned and as it is; empty where nobody knows."""

    name: str
    planned: str = ""
    measured: str = ""


def facts(record: Record) -> list[Fact]:
    """Plan against fact."""
    return list(_facts(record.plan, record.series.train, record)) if record.plan or len(record.series.train) else []


def _facts(plan: Planned | None, steps: Lines, record: Record) -> Iterator[Fact]:
    measured, seconds = len(steps) > 0, float(np.nansum(steps["seconds"]))
    yield Fact(
        name="steps",
        planned=f"{plan.steps.total:,} of {plan.steps.global_batch_size} rows" if plan else "",
        measured=f"{record.status.step:,} done" if measured else "",
    )
    pace = seconds / len(steps) if measured else 0.0
    yield Fact(name="a step", planned=duration(plan.time.step) if plan else "", measured=duration(pace) if measured else "")
    yield Fact(
        name="tokens a step",
        planned=f"{plan.steps.tokens_per_step:,.0f}" if plan else "",
        measured=f"{np.nanmean(steps['tokens']):,.0f}" if measured else "",
    )
    yield Fact(
        name="tokens a second",
        planned=f"{plan.steps.tokens_per_step / plan.time.step:,.0f}" if plan else "",
        measured=f"{np.nansum(steps['tokens']) / seconds:,.0f}" if seconds else "",
    )
    yield Fact(name="training", planned=_range(plan.time, duration) if plan else "", measured=_time(record, seconds) if measured else "")
    yield Fact(
        name="memory at its peak",
        planned=f"{gigabytes(plan.memory.peak_bytes)} of {gigabytes(plan.memory.device_bytes)}" if plan else "",
        measured=gigabytes(float(np.nanmax(steps["memory_bytes"]))) if measured else "",
    )
    if plan and plan.cost and plan.cost.high:
        yield Fact(name="cost", planned=_range(plan.cost, "${:,.2f}".format))


def _time(record: Record, seconds: float) -> str:
    """What its steps and validations have taken, and what is left."""
    done = seconds + float(np.nansum(record.series.validation["seconds"]))
    left = record.status.seconds_left
    return duration(done) + (f", {duration(left)} left" if left else "")


def _range(found: Range, said: Callable[[float], str]) -> str:
    return f"{said(found.mid)} ({said(found.low)} … {said(found.high)})"

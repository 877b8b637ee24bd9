"""Rules that look at the machine: what waits, what lies idle, who is slow, and what is slower than was planned."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from luthier.core.finding import Change, Finding
from luthier.core.words import duration, percent
from luthier.watch.rules.case import Case, Rule
from luthier.watch.series import Lines

ENOUGH_STEPS = 20
FIRST_STEPS = 5
"""In which libraries make their plans and caches grow; they do not count."""
DATA_SHARE = 0.1
IDLE_GPU, IDLE_CPU = 0.5, 0.3
"""Median utilization: a processor's threads also wait for each other, which is not idle."""
SHORT_SECONDS = 0.1
"""Of a processor's steps, shorter ones are mostly what threads take to begin and end."""
UNUSED_MEMORY = 0.2
SLOW_RANK, SLOW_OFTEN, ENOUGH_TOLD = 1.2, 0.8, 3
SLOWER = 1.25
LONGER, BUSY = 1.1, 0.7
"""Tokens a step over the plan's; and the utilization of a processor that nobody shares."""


def data_bound(case: Case) -> Iterator[Finding]:
    """Steps wait for their rows.

    Severity: warn.

    A step's rows are read and packed in the background while the step before is computed; `data_seconds` is what it had to wait for them
    all the same. Counted are all steps since the last start but the first five. Not asked where answers are rewarded, which are drawn in
    that time.

    Arithmetic: 0.05 s of a step of 0.4 s are 12 %; told is from 10 % on.

    What to do: put the prepared rows, beside the folder of runs (LUTHIER_RUNS), on a local disk; leave a processor core to each rank; then
    padding in place of packing, whose packs are not searched for.

    Source: the definition of data_seconds (`luthier.train.record`).
    """
    steps = _steady(case)
    if len(steps) < ENOUGH_STEPS:
        return
    share = float(np.nansum(steps["data_seconds"]) / np.nansum(steps["seconds"]))
    if share < DATA_SHARE:
        return
    yield Finding(
        code="data-bound",
        severity="warn",
        message=f"{percent(share)} of the time steps wait for their rows",
        evidence={"share": round(share, 3), "seconds": round(float(np.nansum(steps["data_seconds"])), 2)},
        changes=_if(case.recipe.data.packing != "bins", "data.packing", "bins", "packs that are found faster than trees"),
        fix="put the folder of runs on a local disk (LUTHIER_RUNS), and leave a processor core to each rank",
    )


def device_idle(case: Case) -> Iterator[Finding]:
    """The device has nothing to do for much of the time.

    Severity: warn.

    The median of `device_utilization` over all steps since the last start but the first five is below 50 % on a GPU (the share of the
    time in which a kernel ran), below 30 % on a processor (the share of its threads that ran; steps under 0.1 s do not count). Where
    steps wait for their rows, that is told instead. Not asked where answers are rewarded: who draws them one token after the other cannot
    fill a device.

    Arithmetic: a step of 0.3 s in which kernels run for 0.1 s is 33 %.

    What to do: larger micro batches, with which kernels are larger and fewer; packing in place of padding; no recomputing. On a processor:
    `luthier doctor` tells of threads that are too few and of other programs.

    Source: seed 003, "Low GPU Utilization" (docs/notes/seeds.md).
    """
    used, seconds = _steady(case)["device_utilization"], _steady(case)["seconds"]
    used = used[np.isfinite(used) & (_on_gpu(case) | (seconds > SHORT_SECONDS))]
    least = IDLE_GPU if _on_gpu(case) else IDLE_CPU
    if len(used) < ENOUGH_STEPS or float(np.median(used)) >= least or any(data_bound(case)):
        return
    yield Finding(
        code="device-idle",
        severity="warn",
        message=f"The device is busy for {percent(float(np.median(used)))} of a step's time",
        evidence={"utilization": round(float(np.median(used)), 3), "least": least},
        changes=_fuller(case),
        fix="" if _on_gpu(case) else "luthier doctor tells of too few threads and of other programs",
    )


def device_memory_unused(case: Case) -> Iterator[Finding]:
    """A GPU's memory is mostly empty, while micro batches are small or activations are computed twice.

    Severity: note.

    The peak over all steps is below 20 % of what was free when the run began, and the recipe holds back: it names a micro batch, recomputes
    activations, or quantises.

    Arithmetic: 8 of 80 GB are 10 %.

    What to do: leave micro_batch_size to `auto`; do not recompute; do not quantise what fits as it is.

    Source: seed 003: "GPU memory < 20 % on 80GB GPU", 3.6 × faster with larger micro batches (docs/notes/seeds.md).
    """
    held = _steady(case)["memory_bytes"]
    if case.planned == "unknown" or not case.planned.on_gpu or len(held) < ENOUGH_STEPS:
        return
    share, changes = float(held.max()) / case.planned.memory.device_bytes, _fuller(case)
    if share >= UNUSED_MEMORY or not changes:
        return
    yield Finding(
        code="device-memory-unused",
        severity="note",
        message=f"{percent(share)} of the device's memory is used",
        evidence={"share": round(share, 3), "bytes": int(held.max()), "device_bytes": int(case.planned.memory.device_bytes)},
        changes=changes,
    )


def rank_slow(case: Case) -> Iterator[Finding]:
    """One rank is slower than the others, which wait for it in every step.

    Severity: warn.

    ranks.jsonl has, for each rank and ten steps, what it took and what it waited for others; the difference is its own work. Told is a rank
    whose work takes 1.2 × as long as the median of the others in at least four of five tellings, of three or more.

    Arithmetic: of 4 s a rank that waits 0.1 s works 3.9 s; others that wait 1.3 s work 2.7 s: 1.44 ×.

    What to do: look at that machine: heat, another program, a slower device (`luthier doctor` there). Without it the run may be faster.

    Source: the definition of a synchronous step; Lin et al. 2025, arXiv:2505.05713, on stragglers in training.
    """
    work: dict[int, dict[int, float]] = defaultdict(dict)
    hosts: dict[int, str] = {}
    for told in case.ranks:
        if told["step"] <= case.resumed_after:  # perhaps of other machines
            continue
        rank = int(told["rank"])
        work[int(told["step"])][rank] = float(told["seconds"]) - float(told["waiting_seconds"])
        hosts[rank] = str(told["host"])
    whole = [each for each in work.values() if len(each) == len(hosts) > 1]
    for rank in sorted(hosts):
        ratios = np.array([_against_others(each, rank) for each in whole])
        if len(ratios) < ENOUGH_TOLD or (ratios > SLOW_RANK).mean() < SLOW_OFTEN:
            continue
        yield Finding(
            code="rank-slow",
            severity="warn",
            message=f"Rank {rank} on {hosts[rank]} takes {np.median(ratios):.2g} × as long as the others, which wait for it",
            evidence={"rank": rank, "host": hosts[rank], "ratio": round(float(np.median(ratios)), 3), "times": len(ratios)},
            fix=f"luthier doctor on {hosts[rank]}",
        )


def slower_than_planned(case: Case) -> Iterator[Finding]:
    """Steps take longer than the plan said, and more than its range allows for.

    Severity: note.

    The median of all steps since the last start but the first five against the plan's, whose tolerance is its own (high over middle), and
    at least 25 %. Why, as far as is measured: steps have more tokens than planned; they wait for rows; the processor is shared; the plan
    counted on a rate that nobody had measured, a guess for a processor or a share of what a GPU's maker promises; or none of these, and
    the device itself is slower than its probe or its earlier runs said.

    Arithmetic: planned 2.0 s (1.6 … 2.5), found 3.1 s: 1.55 ×; with 1.2 × the tokens, that is a part of it.

    What to do: what the reason says. A guess corrects itself: the next plan here goes by this run's rate. The remaining time that
    `luthier status` shows is measured, not planned.

    Source: docs/notes/plan.md.
    """
    steps = _steady(case)
    if case.planned == "unknown" or len(steps) < ENOUGH_STEPS:
        return
    planned, found = case.planned, float(np.nanmedian(steps["seconds"]))  # what begins again takes long once
    ratio = found / planned.time.step
    if ratio < max(SLOWER, planned.time.slack):
        return
    tokens = float(np.nanmean(steps["tokens"])) / planned.steps.tokens_per_step
    used = steps["device_utilization"][np.isfinite(steps["device_utilization"])]
    of_rows = case.recipe.rl == "none"
    reasons = {
        f"rows are {tokens:.2g} × as long": tokens > LONGER,
        "steps wait for their rows": of_rows and any(data_bound(case)),
        "other programs use the processor": of_rows and not planned.on_gpu and len(used) > 0 and float(np.median(used)) < BUSY,
        "one rank is slow": any(rank_slow(case)),
        f"the plan's rate was {planned.time.rate.source}": not planned.time.rate.measured,
    }
    why = " and ".join(reason for reason, holds in reasons.items() if holds) or "the device is slower than the plan took it for"
    yield Finding(
        code="slower-than-planned",
        severity="note",
        message=f"A step takes {duration(found)}, {ratio:.2g} × what was planned ({duration(planned.time.step)}): {why}",
        evidence={"seconds": round(found, 4), "planned": round(planned.time.step, 4), "tokens": round(tokens, 3), "why": why},
    )


RULES: tuple[Rule, ...] = (data_bound, device_idle, device_memory_unused, rank_slow, slower_than_planned)


def _steady(case: Case) -> Lines:
    """Steps that were timed since the run was begun or gone on with, but for the first."""
    steps = case.series.train
    return steps.where((steps["step"] > case.resumed_after + FIRST_STEPS) & np.isfinite(steps["seconds"]))


def _on_gpu(case: Case) -> bool:
    return case.planned != "unknown" and case.planned.on_gpu


def _against_others(work: Mapping[int, float], rank: int) -> float:
    others = float(np.median([seconds for other, seconds in work.items() if other != rank]))
    return work[rank] / others if others > 0 else 1.0


def _if(holds: bool, path: str, value: str | bool, why: str) -> tuple[Change, ...]:
    return (Change(path=path, value=value, why=why),) if holds else ()


def _fuller(case: Case) -> tuple[Change, ...]:
    """What gives a device more to do at once, by what it helps and costs."""
    training, recipe = case.recipe.training, case.recipe
    return (
        *_if(training.micro_batch_size != "auto", "training.micro_batch_size", "auto", "as many rows at once as fit; the update stays"),
        *_if(recipe.data.packing == "off", "data.packing", "auto", "no padding is computed"),
        *_if(training.gradient_checkpointing is True, "training.gradient_checkpointing", "auto", "recomputes only what would not fit"),
        *_if(recipe.model.quantization != "none", "model.quantization", "none", "nothing is unpacked in each layer"),
    )

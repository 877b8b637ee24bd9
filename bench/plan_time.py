"""The plan's time against real runs: the probe's prediction before the run, and the forecast after its first steps.

    python bench/plan_accuracy.py --time --pairs 5 --json time.json

Probe and run take turns, each in a process of its own, so that a machine that drifts drifts under both; its own drift, the spread of the
same run, stands beside the errors. A run's seconds are those of its steps, validations and saves.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # a child's `python bench/plan_time.py` looks for modules in bench/ only

import torch

from bench.cells import ROWS_PER_STEP, Cell, make_job, plan_of
from bench.grid import LARGE, MIDDLE, SMALL
from luthier.core import jsonl
from luthier.core.environment import SETTINGS, start_settings
from luthier.core.hardware import this_machine
from luthier.core.progress import Silent
from luthier.plan.plan import make
from luthier.train.forecast import ENOUGH
from luthier.train.rate import RateHere
from luthier.train.run import TrainingJob, train

STEPS = 40
"""Of a run: enough for the first ten to be a forecast of something."""
WITHIN_PROBE, WITHIN_FORECAST = 0.25, 0.05
"""What is promised."""
PATIENCE_SECONDS = 1200
CELLS = (
    Cell(shape=MIDDLE, rank=16, length=256, rows=8, dtype="bfloat16", checkpointing=False, packing="tree", lengths="shared"),
    Cell(shape=MIDDLE, rank=16, length=256, rows=8, dtype="bfloat16", checkpointing=False, packing="bins"),
    Cell(shape=MIDDLE, rank=16, length=256, rows=4, dtype="float32", checkpointing=False, packing="off"),
    Cell(shape=MIDDLE, rank=0, length=256, rows=8, dtype="bfloat16", checkpointing=False, packing="bins"),
    Cell(shape=SMALL, rank=16, length=512, rows=8, dtype="bfloat16", checkpointing=False, packing="tree", lengths="shared"),
    Cell(shape=SMALL, rank=16, length=512, rows=8, dtype="float32", checkpointing=False, packing="bins"),
    Cell(shape=SMALL, rank=0, length=512, rows=4, dtype="float32", checkpointing=False, packing="off"),
    Cell(shape=LARGE, rank=16, length=256, rows=8, dtype="bfloat16", checkpointing=True, packing="bins"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One probe and the run after it, in seconds."""

    predicted: float
    """Of the whole run, by the probe."""
    forecast: float
    """By its first ten steps."""
    real: float
    probe_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All pairs of a cell."""

    cell: Cell
    pairs: tuple[Pair, ...]

    @property
    def probe_error(self) -> float:
        """Of the prediction against its own run, relative; the median of the pairs."""
        return statistics.median(pair.predicted / pair.real - 1 for pair in self.pairs)

    @property
    def forecast_error(self) -> float:
        """Of the forecast, likewise."""
        return statistics.median(pair.forecast / pair.real - 1 for pair in self.pairs)

    @property
    def drift(self) -> float:
        """Of the same run on this machine: the longest against the shortest, in halves either way of the middle."""
        real = [pair.real for pair in self.pairs]
        return (max(real) - min(real)) / (max(real) + min(real))


def main_time(options: argparse.Namespace) -> None:
    """Measure every cell in `options.pairs` pairs under `options.work`, print the table, and keep it in `options.json`."""
    results = []
    for cell in CELLS:
        pairs = []
        for _ in range(options.pairs):
            pairs.append(_pair(cell, options.work))
            print(f"{time.strftime('%H:%M:%S')} {cell}: {_told(pairs[-1])}", file=sys.stderr, flush=True)
        results.append(Result(cell=cell, pairs=tuple(pairs)))
    print(table(results))
    if options.json:
        record = {"machine": _machine(), "steps": STEPS, "cells": [{"cell": str(result.cell), **asdict(result)} for result in results]}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def table(results: Sequence[Result]) -> str:
    """Markdown: each cell's run, the machine's drift, and both errors."""
    lines = [
        f"{_machine()}; runs of {STEPS} steps of {ROWS_PER_STEP} rows, {len(results[0].pairs)} pairs of probe and run. Errors are medians,",
        "and in brackets the lowest and the highest.",
        "",
        "| cell | run, s | the same run drifts | the probe says, s | error | error after 10 steps |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        real, predicted = (statistics.median(getattr(pair, name) for pair in result.pairs) for name in ("real", "predicted"))
        errors = (_spread([getattr(pair, name) / pair.real - 1 for pair in result.pairs]) for name in ("predicted", "forecast"))
        lines.append(f"| {result.cell} | {real:.1f} | ± {result.drift:.0%} | {predicted:.1f} | {' | '.join(errors)} |")
    near = sum(abs(result.probe_error) <= WITHIN_PROBE for result in results)
    close = sum(abs(result.forecast_error) <= WITHIN_FORECAST for result in results)
    told = f"{near} of {len(results)} within {WITHIN_PROBE:.0%} from the probe, {close} within {WITHIN_FORECAST:.0%} after {ENOUGH} steps."
    return "\n".join([*lines, "", told])


def _pair(cell: Cell, work: Path) -> Pair:
    probed, ran = (_child(what, cell, work) for what in ("probe", "run"))
    return Pair(predicted=probed["predicted"], forecast=ran["forecast"], real=ran["real"], probe_seconds=probed["seconds"])


def _child(what: str, cell: Cell, work: Path) -> dict[str, float]:
    """A process that knows of no earlier run, with the waiting of threads that luthier's command line asks for."""
    with tempfile.TemporaryDirectory() as runs:
        environment = {**SETTINGS, **start_settings(), **os.environ, "LUTHIER_RUNS": runs}
        command = [sys.executable, __file__, what, json.dumps(asdict(cell)), str(work)]
        answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_SECONDS, check=True)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def _probe(cell: Cell, work: Path) -> dict[str, float]:
    """The whole run's seconds, as a plan says that makes a probe."""
    facts = _job(cell, work).plan.facts
    config = json.loads((Path(facts.task.recipe.model.base) / "config.json").read_text(encoding="utf-8"))
    began = time.perf_counter()
    rate = RateHere(task=facts.task, config=config, host=facts.host, progress=Silent(), probe=True)
    planned = make(replace(facts, rate=rate)).time
    if planned.rate.source != "probe":
        raise SystemExit(f"the rate is not from a probe but {planned.rate.source}")
    return {"predicted": planned.total.mid, "seconds": time.perf_counter() - began}


def _run(cell: Cell, work: Path) -> dict[str, float]:
    """The run's real seconds, and what it said after its first steps."""
    job = _job(cell, work)
    train(job)
    events = list(jsonl.records(job.folder.events))
    (told,) = (event for event in events if event["event"] == "forecast")
    saves = sum(event["seconds"] for event in events if event["event"] == "saved")
    return {"real": saves + sum(line["seconds"] for line in jsonl.records(job.folder.metrics)), "forecast": told["total"]["mid"]}


def _job(cell: Cell, work: Path) -> TrainingJob:
    """The cell's job with STEPS steps, validated and saved twice."""
    job = make_job(cell, work)
    training = job.recipe.training.model_copy(update={"max_steps": STEPS})
    checkpoints = job.recipe.checkpoints.model_copy(update={"eval_steps": STEPS // 2, "save_steps": STEPS // 2})
    recipe = job.recipe.model_copy(update={"training": training, "checkpoints": checkpoints})
    return replace(job, plan=plan_of(recipe, job.prepared))


def _spread(errors: Sequence[float]) -> str:
    return f"{statistics.median(errors):+.1%} ({min(errors):+.1%} … {max(errors):+.1%})"


def _told(pair: Pair) -> str:
    probed, told = pair.predicted / pair.real - 1, pair.forecast / pair.real - 1
    return f"{pair.real:.1f} s; the probe said {pair.predicted:.1f} ({probed:+.1%}), ten steps {pair.forecast:.1f} ({told:+.1%})"


def _machine() -> str:
    machine = this_machine()
    return f"{time.strftime('%Y-%m-%d')}, {machine.processor}, {machine.cores} cores, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    do = {"probe": _probe, "run": _run}[sys.argv[1]]
    print(json.dumps(do(Cell.of_json(json.loads(sys.argv[2])), Path(sys.argv[3]))))

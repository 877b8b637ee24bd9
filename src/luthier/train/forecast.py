"""When a run will end, by what its first steps took: the plan's estimate, refined."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from luthier.data.order import Indices, epoch_order
from luthier.data.store import Rows
from luthier.plan.speed import Range, Time, steps_saved
from luthier.plan.steps import Steps
from luthier.runs.rates import FEWEST_STEPS, Circumstances, Measured

ENOUGH = 10
"""Steps after which a run is forecast; the first of them, in which memory is new and shapes are unseen, does not count."""
LEAST_SPREAD = 0.05
"""Of a forecast, either way: a quiet machine's own drift over minutes. A busy one drifts by 30 % and more, which ten steps cannot know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is known of a run before it begins."""

    tokens: Sequence[int] | Indices
    """Of each step's rows, from step 1."""
    evaluations: Sequence[int]
    """Steps that are followed by a validation."""
    saves: Sequence[int]
    """Steps that are followed by a save."""
    planned: Range
    """Of the whole run."""
    step_seconds: float
    """As planned, on average."""
    validation_seconds: float
    """As planned, of one."""
    save_seconds: float
    """As planned, of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What this process took for one thing, and at which step."""

    kind: Literal["step", "validation", "save"]
    step: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Seconds that this process takes to the run's last step: from the run's first, or of a run that goes on from where it does."""

    after: int
    """The step it goes on from: `total` and `planned` are of all that comes after it."""
    total: Range
    left: Range
    planned: Range
    """What the plan takes for what `total` is of."""
    step: float
    """Of a step, on average."""


def schedule_of(rows: Rows, steps: Steps, seed: int, planned: Time) -> Schedule:
    """The schedule of a run over these rows, with the plan's times until there are measured ones."""
    saves = steps_saved(steps)
    return Schedule(
        tokens=step_tokens(rows, steps, seed),
        evaluations=steps.evaluations,
        saves=saves,
        planned=planned.total,
        step_seconds=planned.step,
        validation_seconds=planned.validation / max(1, len(steps.evaluations)),
        save_seconds=planned.saves / len(saves),
    )


def step_tokens(rows: Rows, steps: Steps, seed: int) -> Indices:
    """Tokens of each step's rows, from step 1."""
    starts = np.arange(0, len(rows), steps.global_batch_size)
    epochs = range(math.ceil(steps.total / len(starts)))
    tokens = [np.add.reduceat(rows.lengths[epoch_order(seed, epoch, rows)].astype(np.int64), starts) for epoch in epochs]
    return np.concatenate(tokens)[: steps.total]


def forecast(schedule: Schedule, timings: Sequence[Timing]) -> Forecast:
    """How long the run takes in all, from what this process has taken since it started or resumed; two steps are the least.

    A token's seconds are the steps' mean without the fastest and the slowest; the first step never counts. A validation or save that has
    not come yet takes what was planned, validations times what the steps take of their plan.
    """
    steps = [timing for timing in timings if timing.kind == "step"][1:]
    paces = sorted(timing.seconds / int(schedule.tokens[timing.step - 1]) for timing in steps)
    pace = statistics.fmean(paces[1:-1] or paces)
    mean = pace * float(np.mean(schedule.tokens))
    slower = mean / schedule.step_seconds if schedule.step_seconds else 1.0
    validation = _median(timings, "validation", schedule.validation_seconds * slower)
    save = _median(timings, "save", schedule.save_seconds)
    after, done = min(timing.step for timing in timings if timing.kind == "step") - 1, max(timing.step for timing in timings)
    spread = max(LEAST_SPREAD, 3 * statistics.pstdev(paces) / math.sqrt(len(paces)) / pace)  # three standard errors of a mean
    return Forecast(
        after=after,
        total=_around(_seconds(schedule, after, pace, validation, save), spread),
        left=_around(_seconds(schedule, done, pace, validation, save), spread),
        planned=schedule.planned.times(_share_after(schedule, after)),
        step=mean,
    )


def run_rate(name: str, here: Circumstances, operations_per_token: float, schedule: Schedule, timings: Sequence[Timing]) -> Measured | None:
    """What a run reached in all its steps but the first, for the plans of later ones; None of a run too short to tell."""
    steps = [timing for timing in timings if timing.kind == "step"][1:]
    if len(steps) + 1 < FEWEST_STEPS:
        return None
    tokens, seconds = sum(int(schedule.tokens[timing.step - 1]) for timing in steps), sum(timing.seconds for timing in steps)
    return Measured(source="run", name=name, circumstances=here, flops=operations_per_token * tokens / seconds, seconds=seconds)


def _seconds(schedule: Schedule, after: int, pace: float, validation: float, save: float) -> float:
    """Of what comes after this step, by seconds of a token, a validation and a save."""
    validations, saves = (sum(step > after for step in found) for found in (schedule.evaluations, schedule.saves))
    return pace * float(np.sum(schedule.tokens[after:])) + validation * validations + save * saves


def _share_after(schedule: Schedule, after: int) -> float:
    """Of the planned seconds, those that come after this step."""
    pace = schedule.step_seconds / float(np.mean(schedule.tokens))
    left, whole = (_seconds(schedule, step, pace, schedule.validation_seconds, schedule.save_seconds) for step in (after, 0))
    return left / whole if whole else 1.0


def _median(timings: Sequence[Timing], kind: Literal["validation", "save"], planned: float) -> float:
    found = [timing.seconds for timing in timings if timing.kind == kind]
    return statistics.median(found) if found else planned


def _around(seconds: float, spread: float) -> Range:
    return Range(low=seconds * (1 - spread), mid=seconds, high=seconds * (1 + spread))

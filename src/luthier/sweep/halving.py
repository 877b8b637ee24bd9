"""Successive halving: all trials are trained a little, the better half of them twice as far, and so on to the whole run.

Jamieson & Talwalkar 2016, with a rate η of 2. A loser is stopped on the way of its full run: its learning rate followed the schedule of all
steps, so that nothing is judged by a schedule that nobody would train, and those that go on are never trained anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from luthier.plan.steps import Steps

RATE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """So many trials are trained to this share of their steps."""

    trials: int
    share: float


def rungs(number: int) -> tuple[Rung, ...]:
    """Of so many trials. With s = ⌊log₂ n⌋, ⌊n/2ⁱ⌋ of them to 2ⁱ⁻ˢ: 6 to ¼, 3 to ½, 1 to the end."""
    last = number.bit_length() - 1
    return tuple(Rung(trials=number // RATE**rung, share=RATE ** (rung - last)) for rung in range(last + 1))


def step_of(share: float, steps: Steps) -> int:
    """The first validation at or after this share of a run, past the steps in which its learning rate climbs; else the last step."""
    if share == 1:
        return steps.total
    due = max(share * steps.total, steps.warmup + 1)
    return min((step for step in steps.evaluations if step >= due - 1e-9), default=steps.total)


def survivors(values: Mapping[str, float], number: int, *, higher_is_better: bool) -> tuple[str, ...]:
    """The best of those that were measured, the best first; of equal ones those that come first."""
    return tuple(sorted(values, key=lambda name: -values[name] if higher_is_better else values[name])[:number])

"""What is asked of a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.core.errors import UsageError
from luthier.sweep.budget import ENDLESS, Budget
from luthier.sweep.space import Axis, Trial, draw, grid, trials


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which values, how many of their combinations, whether losers are stopped on the way, and what all of it may take."""

    over: tuple[str, ...]
    """`lora.r=16,32,64` or the code of a finding (`luthier.sweep.space`)."""
    overrides: tuple[str, ...] = ()
    """Of the command line: made in every trial, before its own."""
    number: int | Literal["all"] = "all"
    halving: bool = False
    budget: Budget = ENDLESS

    def trials(self, name: str, axes: Sequence[Axis], seed: int) -> tuple[Trial, ...]:
        """The combinations to try of the recipe of this name; raises UsageError where that is none, or one."""
        if not axes:
            raise UsageError("nothing to search over", change="name values, --over lora.r=16,32,64, or a finding's code")
        if self.number == 1:
            raise UsageError("one trial is no search", change="give --trials 2 or more, or leave it out to try every combination")
        return trials(name, grid(axes) if self.number == "all" else draw(axes, self.number, seed))

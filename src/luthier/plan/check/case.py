"""The case that checks look at: a recipe, and all that the plan knows of it before the run."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from luthier.core.finding import Change, Finding
from luthier.core.hardware import Hardware
from luthier.plan.asked import asked_here
from luthier.plan.hardware import Device
from luthier.plan.memory import Memory, ledger
from luthier.plan.setup import Setup
from luthier.plan.shape import ModelShape
from luthier.plan.speed import Time
from luthier.plan.steps import Steps
from luthier.recipe.proof import BOUND
from luthier.recipe.schema import Recipe
from luthier.runs.summary import DataSummary
from luthier.runs.workload import Survey

UNITS = {"": 1.0, "%": 0.01, "ms": 1e-3, "s": 1.0, "MB": 1e6, "GB": 1e9}
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a plan is made of, without its findings."""

    recipe: Recipe
    shape: ModelShape
    setup: Setup
    device: Device
    num_devices: int
    """That there are: of this machine, or as many as launch.gpu names."""
    steps: Steps
    survey: Survey
    memory: Memory
    """Of one device; its `device_bytes` are those that are free there."""
    time: Time
    data: DataSummary | Literal["stated"]
    """`stated`: there are no prepared rows yet, only their number."""
    host: Hardware | Literal["elsewhere"]
    """This machine, where the run is planned for it."""
    host_free_bytes: int | Literal["unknown"] = "unknown"
    """Of this machine's memory, now."""
    disk_free_bytes: int | Literal["unknown"] = "unknown"
    """Of the disk that the run's folder lies on."""
    saved: tuple[int, ...] = ()
    """Steps of the checkpoints that this run has already."""
    remedies: tuple[Change, ...] = ()
    """The cheapest changes after which it would fit, where it does not."""

    @property
    def epochs(self) -> float:
        """Passes over the training rows, also where the recipe says max_steps."""
        return self.steps.total / self.steps.per_epoch

    @property
    def rows_per_rank(self) -> int:
        """Of a step, on the replica with the most of them."""
        return -(-self.steps.global_batch_size // self.setup.layout.data)

    @property
    def on_gpu(self) -> bool:
        """Whether it is planned for a GPU."""
        return self.device.kind == "cuda"

    def memory_of(self, setup: Setup) -> Memory:
        """The ledger of the same micro batches under another setup."""
        return ledger(self.shape, setup, self.survey, self.memory.device_bytes, asked_here(self.recipe, self.survey))


Check = Callable[[Case], Iterator[Finding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A bound of `decision.deploy` on a number, in the metric's own unit: a share, seconds or bytes."""

    metric: str
    text: str
    at_least: bool
    value: float


def wanted(recipe: Recipe) -> Iterator[Wanted]:
    """The bounds that must be shown to hold; comparisons with the baseline, which have no number, are left out."""
    for metric, text in recipe.decision.deploy.items():
        found = BOUND.fullmatch(text)
        if found:
            value = float(found["value"]) * UNITS[found["unit"] or ""]
            yield Wanted(metric=metric, text=text.strip(), at_least=found["comparison"].startswith(">"), value=value)


def waits_for_memory(recipe: Recipe) -> bool:
    """Whether the decision has a bound on how long an answer or a token takes, which memory sets a floor to."""
    return any(bound.metric.startswith(("per_token_", "latency_")) for bound in wanted(recipe))


def seconds_of(text: str) -> float:
    """Seconds of a duration as the recipe writes it: `16 h` is 57,600."""
    number, unit = re.findall(r"[\d.]+|[a-z]+", text)
    return float(number) * SECONDS[unit]

"""Planned: what a run's plan.json says, for who plans nothing: status, rules, report. `luthier.plan.plan` writes it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.core.finding import Finding
from luthier.runs.store import RunFolder

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Part(BaseModel):
    """Of a file what is read here: one of a later version may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Device(Part):
    """What the run was planned for."""

    id: str
    """`cpu`, or the GPU's."""


class Steps(Part):
    """How many, of how much, and after which of them it validates and saves."""

    total: Annotated[int, Field(gt=0)]
    global_batch_size: int
    tokens_per_step: Positive
    evaluations: tuple[int, ...] = ()
    saves: tuple[int, ...] = ()


class Line(Part):
    """One line of the memory ledger."""

    name: str
    kind: str
    bytes: float
    formula: str


class Memory(Part):
    """Of one device."""

    peak_bytes: float
    device_bytes: Positive
    lines: tuple[Line, ...] = ()


class Range(Part):
    """The middle, and what it may be as well."""

    low: float
    mid: float
    high: float


class Rate(Part):
    """Where the rate is from that the time follows from."""

    source: str
    """`earlier runs (3)`, `probe`, `a guess for …`."""
    measured: bool = True
    """By a run or a probe on this device; versions that did not tell are believed."""


class Time(Range):
    """Seconds of the run, and of one step."""

    mid: Positive
    step: Positive
    rate: Rate

    @property
    def slack(self) -> float:
        """Its range upwards: more than so many times the middle is slower than planned."""
        return self.high / self.mid


class Resolved(Part):
    """What an `auto` became."""

    path: str
    value: str | int | float | bool | None
    why: str


class Planned(Part):
    """plan.json."""

    device: Device
    steps: Steps
    memory: Memory
    time: Time
    cost: Range | None = None
    resolved: tuple[Resolved, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether it was planned for a GPU."""
        return self.device.id != "cpu"

    @classmethod
    def of(cls, run: RunFolder) -> "Planned | Literal['unknown']":
        """What the run's plan.json says; of one that is not there, damaged or of another version, nothing is known."""
        try:
            return cls.model_validate_json(run.plan.read_bytes())
        except (OSError, ValidationError):
            return "unknown"

"""The newest lines of metrics.jsonl, read from its end: 200,000 of them take no longer than twenty."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

STEPS = 20
"""Over which what differs from step to step is averaged."""
VALIDATION = b'"kind": "validation"'


class Line(BaseModel):
    """Of a line what is read here; `loss` is None where it was no number."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: Annotated[int, Field(ge=0)]
    epoch: float
    kind: Literal["train", "validation"]
    loss: float | None
    supervised_tokens: int
    tokens: int
    seconds: float
    memory_bytes: int
    device_utilization: float | None
    reward: float | None = None
    """Of the step's answers on average, where answers are rewarded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """The newest steps, and the newest validation with the steps that led to it, each in the run's order."""

    steps: tuple[Line, ...] = ()
    validation: Line | None = None
    before_validation: tuple[Line, ...] = ()

    @property
    def all(self) -> tuple[Line, ...]:
        """The newest lines of both kinds."""
        return self.steps if self.validation is None else (*self.steps, self.validation)

    @property
    def tokens_per_second(self) -> float | None:
        """Of the newest steps together."""
        seconds = sum(line.seconds for line in self.steps)
        return sum(line.tokens for line in self.steps) / seconds if seconds else None

    @property
    def seconds_per_step(self) -> float | None:
        """Of the newest steps without the fastest and the slowest, on average."""
        paces = sorted(line.seconds for line in self.steps)
        paces = paces[1:-1] or paces
        return sum(paces) / len(paces) if paces else None

    @property
    def reward(self) -> float | None:
        """Of the newest steps together: another step asks other rows, and a single one's would be noise."""
        told = [line.reward for line in self.steps if line.reward is not None]
        return sum(told) / len(told) if told else None

    @property
    def gap(self) -> float | None:
        """The newest validation loss less that of the steps before it, per supervised token: a single step's would be noise.

        None where answers are rewarded: what a step minimises then is no likelihood.
        """
        if self.reward is not None:
            return None
        told = [(line.loss, line.supervised_tokens) for line in self.before_validation if line.loss is not None]
        tokens = sum(number for _, number in told)
        if not tokens or self.validation is None or self.validation.loss is None:
            return None
        return self.validation.loss - sum(loss * number for loss, number in told) / tokens


def recent(path: Path) -> Recent:
    """What a metrics.jsonl ends with. A torn last line is no line, one that is damaged is passed over, a file that is gone has none."""
    if not path.exists() or not path.stat().st_size:  # of which there is no map
        return Recent()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = data.rfind(b"\n") + 1
        found = data.rfind(VALIDATION, 0, end)
        steps = _steps_before(data, end)
        if found < 0:
            return Recent(steps=steps)
        start = data.rfind(b"\n", 0, found) + 1
        validation = _line(data[start : data.find(b"\n", found)])
        return Recent(steps=steps, validation=validation, before_validation=_steps_before(data, start))


def _steps_before(data: mmap.mmap, end: int) -> tuple[Line, ...]:
    """The newest lines of steps that end before this place."""
    found: list[Line] = []
    for text in _backwards(data, end):
        line = _line(text)
        if line and line.kind == "train":
            found.append(line)
        if len(found) == STEPS:
            break
    return tuple(reversed(found))


def _backwards(data: mmap.mmap, end: int) -> Iterator[bytes]:
    while end > 0:
        start = data.rfind(b"\n", 0, end - 1) + 1
        yield data[start : end - 1]
        end = start


def _line(text: bytes) -> Line | None:
    try:
        return Line.model_validate_json(text)
    except ValidationError:
        return None

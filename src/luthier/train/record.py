"""The lines of metrics.jsonl: the same keys for a step and for a validation."""

import time
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from luthier.train.step import StepRecord
from luthier.train.validate import ValidationRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line. Null: a validation has no rate, gradient or separate loading; a GPU's utilization is not measured here."""

    step: int
    epoch: float
    kind: Literal["train", "validation"]
    loss: float
    learning_rate: float | None
    grad_norm: float | None
    tokens: int
    supervised_tokens: int
    tokens_per_second: float
    seconds: float
    data_seconds: float | None
    memory_bytes: int
    device_utilization: float | None


class Stopwatch:
    """Wall-clock and processor seconds since it was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._wall, self._processor = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds."""
        return time.perf_counter() - self._wall

    @property
    def utilization(self) -> float | None:
        """Share of torch's CPU threads that were busy."""
        if self.device.type == "cuda":
            return None
        return min(1.0, (time.process_time() - self._processor) / (self.seconds * torch.get_num_threads()))


def of_step(done: StepRecord, watch: Stopwatch, *, step: int, epoch: float, rate: float, data_seconds: float) -> Line:
    """One optimizer step."""
    seconds = watch.seconds
    return Line(
        step=step,
        epoch=epoch,
        kind="train",
        loss=done.loss,
        learning_rate=rate,
        grad_norm=done.grad_norm,
        tokens=done.num_tokens,
        supervised_tokens=done.num_targets,
        tokens_per_second=done.num_tokens / seconds,
        seconds=seconds,
        data_seconds=data_seconds,
        memory_bytes=memory_bytes(watch.device),
        device_utilization=watch.utilization,
    )


def of_validation(found: ValidationRecord, watch: Stopwatch, *, step: int, epoch: float) -> Line:
    """One pass over the validation rows."""
    seconds = watch.seconds
    return Line(
        step=step,
        epoch=epoch,
        kind="validation",
        loss=found.loss,
        learning_rate=None,
        grad_norm=None,
        tokens=found.num_tokens,
        supervised_tokens=found.num_targets,
        tokens_per_second=found.num_tokens / seconds,
        seconds=seconds,
        data_seconds=None,
        memory_bytes=memory_bytes(watch.device),
        device_utilization=watch.utilization,
    )


def memory_bytes(device: torch.device) -> int:
    """What this process holds: the GPU's peak since the start, or resident memory now."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss

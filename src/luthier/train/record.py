"""The lines of metrics.jsonl, the same keys for a step and for a validation; and of ranks.jsonl, what each rank did of ten steps."""

import math
import socket
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Literal

import psutil
import torch

from luthier.core import files, jsonl
from luthier.runs.heartbeat import Heart
from luthier.runs.store import RunFolder
from luthier.train.ranks import Ranks
from luthier.train.step import StepRecord
from luthier.train.validate import ValidationRecord
from luthier.watch.busy import Busy, Unseen, sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line. Null: a validation has no rate, gradient or separate loading; a GPU's utilization is unknown without nvidia-smi."""

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


STEPS_TOLD = 10
"""After so many steps ranks tell the first what they did: one message, in which none waits longer than it does in every step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLine:
    """One rank's share of the last ten steps, up to `step`: what it waited for others, and what it had to itself."""

    step: int
    rank: int
    host: str
    seconds: float
    waiting_seconds: float
    """On the host; waits on a GPU's own queue are not in it."""
    data_seconds: float
    memory_bytes: int
    device_utilization: float | None


@dataclass(slots=True, kw_only=True)
class Tally:
    """This rank's steps since it last told of them. Every rank notes every step."""

    ranks: Ranks
    heart: Heart
    folder: RunFolder
    _lines: list[Line] = field(default_factory=list)
    _waited: float = 0.0
    """Until the last telling."""

    def note(self, line: Line) -> None:
        """One step that was done; with the tenth, the first rank writes down what all have noted."""
        if self.ranks.size == 1:
            return
        self._lines.append(line)
        if len(self._lines) < STEPS_TOLD:
            return
        waited = self.heart.waited_seconds
        busy = [each.device_utilization for each in self._lines if each.device_utilization is not None]
        own = RankLine(
            step=line.step,
            rank=self.ranks.rank,
            host=socket.gethostname(),
            seconds=math.fsum(each.seconds for each in self._lines),
            waiting_seconds=waited - self._waited,
            data_seconds=math.fsum(each.data_seconds or 0.0 for each in self._lines),
            memory_bytes=line.memory_bytes,
            device_utilization=math.fsum(busy) / len(busy) if busy else None,
        )
        self._lines, self._waited = [], waited
        told = self.ranks.every(asdict(own))
        if self.ranks.first:
            with files.told(self.folder.ranks.name, self.folder.path):
                for each in told:
                    jsonl.append(self.folder.ranks, each)


class Stopwatch:
    """Wall-clock and processor seconds since it was made, and how busy the device was."""

    def __init__(self, device: torch.device, busy: Busy) -> None:
        self.device, self._busy = device, busy
        self._wall, self._processor = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds."""
        return time.perf_counter() - self._wall

    @property
    def utilization(self) -> float | None:
        """Share of torch's CPU threads that were busy, or of the time in which the GPU ran a kernel."""
        if self.device.type == "cuda":
            return self._busy.since(self._wall)
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


def device_use(device: torch.device) -> AbstractContextManager[Busy]:
    """While it is open, a GPU is looked at; of a processor the steps tell themselves."""
    return sampled(f"GPU-{torch.cuda.get_device_properties(device).uuid}") if device.type == "cuda" else nullcontext(Unseen())


def memory_bytes(device: torch.device) -> int:
    """What this process holds: the GPU's peak since the start, or resident memory now."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss

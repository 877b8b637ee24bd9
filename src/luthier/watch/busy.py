"""How busy a GPU is: nvidia-smi is asked every two seconds, beside training and never in a step."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

SECONDS_BETWEEN = 2.0
"""nvidia-smi takes some 30 ms of one core where the driver is loaded, as it is while a GPU trains."""
FRESH_SECONDS = 10.0
"""How old a sample may be that stands for a step in which none was taken."""
MOST_SECONDS = 5.0
"""For an answer: a driver that hangs is not asked again."""
KEPT = 64
"""Samples: two minutes, of a longer step the last two."""


class Busy(Protocol):
    """Whoever knows how busy the device was."""

    def since(self, began: float) -> float | None:
        """The share of the time since then, by `time.perf_counter`, in which kernels ran; None where nobody knows."""
        ...


class Unseen:
    """A device that nobody looks at: a processor, of which the steps themselves tell."""

    def since(self, began: float) -> float | None:
        """Nobody knows."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer: when it came, and the share of the last second or so in which a kernel ran."""

    at: float
    share: float


class Samples:
    """One GPU's, as they come in."""

    def __init__(self) -> None:
        self._kept: tuple[Sample, ...] = ()  # replaced, never changed: a thread reads it while another adds to it

    def add(self, sample: Sample) -> None:
        """The newest."""
        self._kept = (*self._kept[1 - KEPT :], sample)

    def since(self, began: float) -> float | None:
        """The mean of those that came since, or the newest that is fresh enough."""
        kept = self._kept
        found = [sample.share for sample in kept if sample.at >= began] or [
            sample.share for sample in kept[-1:] if time.perf_counter() - sample.at <= FRESH_SECONDS
        ]
        return sum(found) / len(found) if found else None


@contextmanager
def sampled(gpu: str, seconds_between: float = SECONDS_BETWEEN) -> Iterator[Busy]:
    """While it is open, the GPU of this id (`GPU-…`) is looked at; without nvidia-smi, or once that fails, nobody knows."""
    command = shutil.which("nvidia-smi")
    if command is None:
        yield Unseen()
        return
    query = [command, f"--id={gpu}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    samples, over = Samples(), threading.Event()

    def look() -> None:
        while (share := _asked(query)) is not None:
            samples.add(Sample(at=time.perf_counter(), share=share))
            if over.wait(seconds_between):
                return

    looking = threading.Thread(target=look, name="use of the GPU", daemon=True)
    looking.start()
    try:
        yield samples
    finally:
        over.set()
        looking.join(MOST_SECONDS)


def share_of(answer: str) -> float | None:
    """The share in nvidia-smi's answer, in percent: `37`; None for `[N/A]`, as of a part of a GPU (MIG), and for what is no answer."""
    text = answer.strip()
    return min(1.0, int(text) / 100) if text.isdecimal() else None


def _asked(query: list[str]) -> float | None:
    try:
        answer = subprocess.run(
            query, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=MOST_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if answer.returncode else share_of(answer.stdout)

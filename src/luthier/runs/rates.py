"""rates.jsonl: operations a second that earlier runs and probes here reached, and what memory gave: one line each, beside the runs."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from luthier.core import jsonl
from luthier.core.hardware import Hardware
from luthier.runs.store import runs_root

Line = TypeVar("Line")

FEWEST_STEPS = 20
"""Of a run whose rate is kept: its first ones are slower, and a few seconds are not a rate."""
ALIKE = 2.0
"""Factor between widths, and between places of a micro batch, up to which a rate holds for another run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a rate depends on."""

    processor: str
    """The GPU's name, or the processor's."""
    threads: int
    """Of a processor; 0 for a GPU."""
    dtype: str
    quantization: str
    engine: str
    trained: Literal["adapter", "all"]
    hidden: int
    """Of the model."""
    places: float
    """Of a micro batch, on average."""

    def allow(self, other: "Circumstances") -> bool:
        """Whether a rate that was reached under `other` holds here."""
        same = all(
            getattr(self, name) == getattr(other, name) for name in ("processor", "threads", "dtype", "quantization", "engine", "trained")
        )
        return same and _alike(self.hidden, other.hidden) and _alike(self.places, other.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measurement."""

    source: Literal["run", "probe"]
    name: str
    """Of the run, or of the model that was probed."""
    circumstances: Circumstances
    flops: float
    """Operations a second, counted as `luthier.plan.speed` counts them."""
    seconds: float
    """That were measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRead:
    """What a processor's threads read from memory."""

    processor: str
    threads: int
    bytes_per_second: float


LINE, READ_LINE = TypeAdapter(Measured), TypeAdapter(MemoryRead)


def threads_here(hardware: Hardware) -> int:
    """Threads that a run on this processor will have, in so far as they are known without starting it."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) > 0 else hardware.cores


def keep(measured: Measured | MemoryRead) -> None:
    """Add a line."""
    path = rates_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    jsonl.append(path, {"time": time.time(), **asdict(measured)})


def keep_or_say(measured: Measured | MemoryRead, say: Callable[[str], None]) -> None:
    """Add a line; where that cannot be, say so: it is a pity, and no reason to lose a plan or an adapter."""
    try:
        keep(measured)
    except OSError as error:
        say(f"what was measured here is not kept for later plans: {error}")


def known(circumstances: Circumstances) -> tuple[Measured, ...]:
    """The measurements that hold here, the newest first: those of runs, or where there are none those of probes."""
    fitting = [measured for measured in _lines(LINE) if circumstances.allow(measured.circumstances)]
    fitting.reverse()
    return tuple(measured for measured in fitting if measured.source == "run") or tuple(fitting)


def known_bandwidth(processor: str, threads: int) -> float:
    """Bytes a second that a processor reads from memory, the most that was found; 0 where nobody has looked."""
    found = (line.bytes_per_second for line in _lines(READ_LINE) if (line.processor, line.threads) == (processor, threads))
    return max(found, default=0.0)


def rates_file() -> Path:
    """Where they are kept: runs with the folder of all runs, so that another folder has its own."""
    return runs_root() / "rates.jsonl"


def _lines(kind: TypeAdapter[Line]) -> Iterator[Line]:
    for record in jsonl.salvage(rates_file()).records:
        with suppress(ValidationError):  # the other kind, or of another version
            yield kind.validate_python(record)


def _alike(one: float, other: float) -> bool:
    return one <= ALIKE * other and other <= ALIKE * one

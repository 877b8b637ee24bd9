"""All that `luthier doctor` looks at, gathered once, so that what is found follows from it alone."""

import locale
import math
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from luthier.core.finding import Finding
from luthier.core.hardware import PROCESSOR, Hardware, free_memory_bytes, processor_flags, this_machine
from luthier.runs.store import runs_root
from luthier.watch import cards, place, versions
from luthier.watch.cards import Cards
from luthier.watch.place import Place
from luthier.watch.versions import Versions

QUOTA, SHARED_MEMORY = Path("/sys/fs/cgroup/cpu.max"), Path("/dev/shm")
UNLIMITED = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine, its environment and its limits."""

    hardware: Hardware
    cards: Cards
    flags: frozenset[str]
    """The processor's instructions, as the kernel names them; empty where it does not."""
    quota: float
    """Processors' worth of time that the container may use; infinite without a limit."""
    load: float
    """Processes that ran or wanted to in the last minute, on average."""
    free_bytes: int
    swapped_bytes: int
    shared_bytes: float
    """Free in /dev/shm; infinite where there is none."""
    open_files: float
    file_bytes: float
    """Limits of a process: files that it may have open, and the size of one that it writes."""
    encoding: str
    versions: Versions
    runs: Place
    environment: Mapping[str, str]


Check = Callable[[Machine], Iterator[Finding]]


def look() -> Machine:
    """This machine, as this process sees it."""
    return Machine(
        hardware=this_machine(),
        cards=cards.look(),
        flags=processor_flags(PROCESSOR.read_text()) if PROCESSOR.exists() else frozenset(),
        quota=quota_of(QUOTA.read_text()) if QUOTA.exists() else UNLIMITED,
        load=os.getloadavg()[0],
        free_bytes=free_memory_bytes(),
        swapped_bytes=psutil.swap_memory().used,
        shared_bytes=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else UNLIMITED,
        open_files=_limit(resource.RLIMIT_NOFILE),
        file_bytes=_limit(resource.RLIMIT_FSIZE),
        encoding="utf-8" if sys.flags.utf8_mode else locale.getpreferredencoding(False).lower(),
        versions=versions.look(),
        runs=place.look(runs_root()),
        environment=dict(os.environ),
    )


def quota_of(text: str) -> float:
    """Processors' worth of time in the text of cpu.max: `150000 100000` is 1.5, `max 100000` no limit."""
    allowed, _, period = text.strip().partition(" ")
    return int(allowed) / int(period) if allowed.isdecimal() else UNLIMITED


def _limit(which: int) -> float:
    soft, _ = resource.getrlimit(which)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft

"""What machine this is, as far as the standard library and the kernel's own files tell."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.core.environment import Allocator, allocator

Float32Products = Literal["oneDNN", "MKL"]
"""The library that multiplies float32 in training (`luthier.train.host`)."""

PROCESSOR, MEMORY, CGROUPS = Path("/proc/cpuinfo"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""The kernel's names of instructions that multiply bfloat16, on x86 and on ARM. AVX-NE-CONVERT and the like only convert it."""
ROUNDING = {"amx_bf16"}
"""Instructions with which oneDNN rounds float32 to bfloat16 where it may: training leaves float32 products to MKL there."""
GPU_FIELDS = ("name", "memory.total", "memory.reserved", "memory.free", "compute_cap", "display_active", "persistence_mode")
"""What nvidia-smi is asked; drivers know them all since 510 (2022), and PyTorch 2.6 needs a later one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, as nvidia-smi tells it."""

    name: str
    memory_bytes: int
    """That programs can have: all but what the driver keeps for itself."""
    free_bytes: int
    capability: str
    """Of its instructions: `8.0` is Ampere's, the first with bfloat16."""
    drives_display: bool
    persistent: bool
    """The driver stays loaded while nobody uses it (persistence mode)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Processor, usable cores, memory in bytes, and GPUs."""

    processor: str
    cores: int
    memory_bytes: int
    """Of the machine, or of the control group (container, SLURM job) that the process is in."""
    bfloat16: bool
    """The processor multiplies bfloat16 by instructions of its own."""
    gpus: tuple[Gpu, ...]
    allocator: Allocator = "glibc"
    """Of processes that train here."""
    float32_by: Float32Products = "oneDNN"


def this_machine() -> Hardware:
    """The machine this process runs on; cores are those that the process may use."""
    information = PROCESSOR.read_text() if PROCESSOR.exists() else ""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        processor=processor_name(information) or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=min([total, *(limit for limit, _ in _group_memory())]),
        bfloat16=bool(BFLOAT16 & processor_flags(information)),
        gpus=_gpus(),
        allocator=allocator(),
        float32_by="MKL" if ROUNDING & processor_flags(information) else "oneDNN",
    )


def free_memory_bytes() -> int:
    """Host memory that a program can still have without anything being written to swap; all of it where the kernel does not tell."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if MEMORY.exists():
        free = available_bytes(MEMORY.read_text())
    return max(0, min([free, *(limit - used for limit, used in _group_memory())]))


def free_disk_bytes(folder: Path) -> int:
    """Of the file system that the folder lies on, or will: its nearest parent that exists is asked."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def processor_name(information: str) -> str:
    """The first processor's name in the text of /proc/cpuinfo; empty where it has none, as on most ARM machines."""
    return next((line.partition(":")[2].strip() for line in information.splitlines() if line.startswith("model name")), "")


def processor_flags(information: str) -> frozenset[str]:
    """The first processor's instructions in the text of /proc/cpuinfo: `flags` on x86, `Features` on ARM."""
    lines = (line.partition(":") for line in information.splitlines())
    return next((frozenset(words.split()) for key, _, words in lines if key.strip() in ("flags", "Features")), frozenset())


def available_bytes(information: str) -> int:
    """MemAvailable of the text of /proc/meminfo, which is in kB."""
    return next(int(line.split()[1]) * 1024 for line in information.splitlines() if line.startswith("MemAvailable:"))


def gpus_of(answer: str) -> tuple[Gpu, ...]:
    """The GPUs in nvidia-smi's answer to GPU_FIELDS, one line each without units; memory is in MiB. What it does not know is 0 or false."""
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.count(",") >= len(GPU_FIELDS) - 1]
    return tuple(
        Gpu(
            name=name,
            memory_bytes=_mebibytes(total) - _mebibytes(reserved),
            free_bytes=_mebibytes(free),
            capability=capability,
            drives_display=display == "Enabled",
            persistent=persistence == "Enabled",
        )
        for name, total, reserved, free, capability, display, persistence in rows
    )


def _gpus() -> tuple[Gpu, ...]:
    """By nvidia-smi, which is there wherever an NVIDIA driver is."""
    if not (command := shutil.which("nvidia-smi")):
        return ()
    query = [command, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:  # a driver that hangs has no GPU to offer
        return ()
    return () if answer.returncode else visible(gpus_of(answer.stdout), os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(gpus: tuple[Gpu, ...], said: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves: numbers are places, up to the first that is none; an id of a card stands for one."""
    if said is None:
        return gpus
    found: list[Gpu] = []
    for word in filter(None, (word.strip() for word in said.split(","))):
        place = int(word) if word.isdecimal() else len(found) if word.startswith(("GPU-", "MIG-")) else len(gpus)
        if place >= len(gpus):
            break
        found.append(gpus[place])
    return tuple(found)


def _mebibytes(cell: str) -> int:
    return int(cell) * 2**20 if cell.isdecimal() else 0


def _group_memory() -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of the control groups that this process is in and that have a limit (cgroup v2)."""
    membership = Path("/proc/self/cgroup")
    if not membership.exists():
        return
    own = next((line[3:].lstrip("/") for line in membership.read_text().splitlines() if line.startswith("0::")), "")
    for folder in (CGROUPS / own, *(CGROUPS / own).parents):
        limit = folder / "memory.max"
        if folder.is_relative_to(CGROUPS) and limit.exists() and (text := limit.read_text().strip()).isdecimal():
            pages = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield int(text), int((folder / "memory.current").read_text()) - int(pages["inactive_file"])  # pages of files can be given up

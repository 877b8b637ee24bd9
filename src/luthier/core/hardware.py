"""What machine this is, as far as the standard library and the kernel's own files tell."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Processor, usable cores, memory in bytes, and GPU names with their memory in bytes."""

    processor: str
    cores: int
    memory_bytes: int
    gpus: tuple[tuple[str, int], ...]


def this_machine() -> Hardware:
    """The machine this process runs on; cores are those that the process may use."""
    return Hardware(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=_gpus(),
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> tuple[tuple[str, int], ...]:
    """By nvidia-smi, which is there wherever an NVIDIA driver is; memory is printed in MiB."""
    if not (command := shutil.which("nvidia-smi")):
        return ()
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if answer.returncode:
        return ()
    rows = (line.rsplit(",", 1) for line in answer.stdout.splitlines() if "," in line)
    return tuple((name.strip(), int(memory) * 2**20) for name, memory in rows)

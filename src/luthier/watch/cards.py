"""GPUs as nvidia-smi tells them, and what it says instead where something is wrong."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.core.hardware import GPU_FIELDS, Gpu, gpus_of

FIELDS = ("driver_version", "compute_mode", "ecc.errors.uncorrected.volatile.total")
PCI = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"
"""A PCI device's vendor, and how the class of GPUs begins."""
MOST_SECONDS = 20
"""nvidia-smi takes 1 to 3 s where persistence mode is off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One GPU with what only a look at the machine's health asks for."""

    gpu: Gpu
    driver: str
    mode: str
    """`Default`, `Exclusive_Process` or `Prohibited`."""
    defects: int
    """Errors of its memory since the start that could not be corrected; 0 where it has no ECC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """All GPUs of the machine, visible to this process or not."""

    cards: tuple[Card, ...]
    said: str = ""
    """What nvidia-smi said where it failed."""
    command: str | Literal["none"] = "none"
    """Where nvidia-smi lies."""
    on_bus: int = 0
    """NVIDIA GPUs that the kernel sees, with a driver or without."""


def look() -> Cards:
    """The GPUs of this machine."""
    on_bus = nvidia_devices(PCI)
    if not (command := shutil.which("nvidia-smi")):
        return Cards(cards=(), on_bus=on_bus)
    query = [command, f"--query-gpu={','.join((*GPU_FIELDS, *FIELDS))}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=MOST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Cards(cards=(), said=f"nvidia-smi gave no answer in {MOST_SECONDS} s", command=command, on_bus=on_bus)
    if answer.returncode:
        return Cards(cards=(), said=(answer.stdout + answer.stderr).strip() or "nothing", command=command, on_bus=on_bus)
    return Cards(cards=cards_of(answer.stdout), command=command, on_bus=on_bus)


def cards_of(answer: str) -> tuple[Card, ...]:
    """The cards in nvidia-smi's answer to GPU_FIELDS and FIELDS, one line each; what it does not know is 0."""
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines()]
    found = []
    for *facts, driver, mode, defects in (row for row in rows if len(row) == len(GPU_FIELDS) + len(FIELDS)):
        (gpu,) = gpus_of(",".join(facts))
        found.append(Card(gpu=gpu, driver=driver, mode=mode, defects=int(defects) if defects.isdecimal() else 0))
    return tuple(found)


def nvidia_devices(folder: Path) -> int:
    """How many NVIDIA GPUs are on the bus, by the kernel's list of its devices."""
    devices = [(device / "vendor", device / "class") for device in folder.glob("*")]
    pairs = [(vendor.read_text(), kind.read_text()) for vendor, kind in devices if vendor.exists() and kind.exists()]
    return sum(vendor.strip() == NVIDIA and kind.startswith(DISPLAY) for vendor, kind in pairs)

"""Devices that can be rented or stand here: memory, bandwidth, rates, price. The numbers are in hardware.json, with their sources."""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from luthier.core.errors import UsageError
from luthier.core.hardware import Gpu, Hardware

TABLE = Path(__file__).with_name("hardware.json")
AMPERE = 8.0
"""The compute capability of the first GPUs that multiply bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device. Rates are dense peak operations a second, as the maker states them; a type that it has no units for is not in them."""

    id: str
    name: str
    kind: Literal["cpu", "cuda"]
    memory_bytes: int
    """That a program can have: all but what the driver keeps."""
    bandwidth: float
    """Bytes a second; 0 where nobody knows."""
    rates: Mapping[Literal["bfloat16", "float16", "float32", "int8"], float]
    bfloat16: bool
    """Computed by the hardware, not emulated."""
    price_per_hour: float | None
    """US dollars; 0 for a machine of one's own, None where no public price is known."""
    price_source: str
    price_date: str
    local: bool = False


@cache
def table() -> Mapping[str, Device]:
    """Every device that can be named, by id."""
    return {entry["id"]: _device(entry) for entry in _entries()}


def device_of(words: str) -> tuple[Device, int]:
    """The device and how many of it: `L4` is one, `H200x4` are four; raises UsageError, with the nearest names, for another."""
    name, _, number = words.rpartition("x") if re.fullmatch(r".+x[1-9]\d*", words) else (words, "", "1")
    name = next((known for known in table() if known.upper() == name.upper()), name)
    if name not in table():
        longer = [known for known in table() if known.startswith(name.upper())]
        nearest = longer or difflib.get_close_matches(name.upper(), table(), n=3, cutoff=0.5)
        change = f"nearest: {', '.join(nearest)}" if nearest else f"known are {', '.join(table())}"
        raise UsageError(f"no device is called {words!r}", where="launch.gpu", change=f"{change}; several are written H200x4")
    return table()[name], int(number)


def here(hardware: Hardware) -> tuple[Device, int]:
    """This machine: its GPUs like the first one, with the table's rates where it knows them and their own memory; else its processor."""
    if hardware.gpus:
        first = hardware.gpus[0]
        return _local_gpu(first), sum(gpu.name == first.name for gpu in hardware.gpus)
    own = Device(
        id="cpu",
        name=hardware.processor,
        kind="cpu",
        memory_bytes=hardware.memory_bytes,
        bandwidth=0.0,
        rates={},
        bfloat16=hardware.bfloat16,
        price_per_hour=0.0,
        price_source="this machine",
        price_date="",
        local=True,
    )
    return own, 1


def _local_gpu(gpu: Gpu) -> Device:
    known = next((entry for entry in _entries() if re.search(entry["nvidia_smi"], gpu.name)), None)
    if known:
        own = replace(_device(known), memory_bytes=gpu.memory_bytes or _device(known).memory_bytes)
    else:
        own = Device(
            id=gpu.name,
            name=gpu.name,
            kind="cuda",
            memory_bytes=gpu.memory_bytes,
            bandwidth=0.0,
            rates={},
            bfloat16=_capability(gpu) >= AMPERE,
            price_per_hour=0.0,
            price_source="",
            price_date="",
        )
    return replace(own, price_per_hour=0.0, price_source="this machine", price_date="", local=True)


def _capability(gpu: Gpu) -> float:
    return float(gpu.capability) if re.fullmatch(r"\d+(\.\d+)?", gpu.capability) else 0.0


def _device(entry: Mapping[str, Any]) -> Device:
    return Device(
        id=entry["id"],
        name=entry["name"],
        kind="cuda",
        memory_bytes=round(entry["usable_gib"] * 2**30),
        bandwidth=entry["bandwidth_gb"] * 1e9,
        rates={dtype: tera * 1e12 for dtype, tera in entry["rates"].items()},
        bfloat16=entry["bfloat16"],
        price_per_hour=entry["price_per_hour"],
        price_source=entry["price_source"],
        price_date=entry["price_date"],
    )


@cache
def _entries() -> tuple[Mapping[str, Any], ...]:
    return tuple(json.loads(TABLE.read_text(encoding="utf-8"))["devices"])

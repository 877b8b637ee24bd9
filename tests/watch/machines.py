"""Machines as `luthier doctor` sees them: a sound one, changed where a test says so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.core.finding import Finding
from luthier.core.hardware import Hardware
from luthier.watch.cards import Cards, cards_of
from luthier.watch.health import examine
from luthier.watch.machine import UNLIMITED, Machine
from luthier.watch.place import Place
from luthier.watch.versions import Versions, packages_of

REQUIRED = ("torch<=2.13.0,>=2.11", "transformers<5.24,>=5.23", "peft<0.22,>=0.21", 'pytest>=8.3; extra == "dev"')
TESTED = "# Exact versions (Python 3.11, 2026-11-20)\ntorch==2.13.0\ntransformers==5.23.0\npeft==0.21.2\npytest==9.2.0\n"
INSTALLED = {"torch": "2.13.0+cu130", "transformers": "5.23.0", "peft": "0.21.2"}
H200 = "NVIDIA H200, 143771, 516, 142700, 9.0, Disabled, Enabled, 580.95.05, Default, 0\n"
"""As nvidia-smi answers to the names in GPU_FIELDS and FIELDS."""
DISK = Place(path=Path("runs"), kind="ext4", free_bytes=10**12, free_files=10**7, writable=True, locks=True)
PROCESSOR = Hardware(processor="EPYC", cores=16, memory_bytes=200 * 10**9, bfloat16=True, gpus=(), allocator="luthier")


def versions(cuda: str = "13.0.96", python: str = "3.11.7", **installed: str) -> Versions:
    """The tested versions, with others in place of some; `peft=""` is not installed."""
    return Versions(
        python=python,
        python_allowed=">=3.11",
        python_tested="3.11",
        packages=packages_of(REQUIRED, TESTED, {**INSTALLED, **installed}),
        cuda=cuda,
    )


def machine(answer: str = H200, **changed: Any) -> Machine:
    """A sound machine with the GPUs of nvidia-smi's answer; `changed` are fields of Machine."""
    cards = Cards(cards=cards_of(answer), command="/usr/bin/nvidia-smi", on_bus=answer.count("\n"))
    sound: dict[str, Any] = {
        "hardware": replace(PROCESSOR, gpus=tuple(card.gpu for card in cards.cards)),
        "cards": cards,
        "flags": frozenset({"sse2", "avx2"}),
        "quota": UNLIMITED,
        "load": 0.5,
        "free_bytes": 150 * 10**9,
        "swapped_bytes": 0,
        "shared_bytes": 10**11,
        "open_files": 65536,
        "file_bytes": UNLIMITED,
        "encoding": "utf-8",
        "versions": versions(),
        "runs": DISK,
        "environment": {"PATH": "/usr/bin", "HOME": "/root"},
    }
    return Machine(**{**sound, **changed})


def found(answer: str = H200, **changed: Any) -> dict[str, Finding]:
    """What is found of the changed machine, by code."""
    return {finding.code: finding for finding in examine(machine(answer, **changed)).findings}


def only(code: str, answer: str = H200, **changed: Any) -> Finding:
    """The finding of this code, if it is all that is found; it says what mends it."""
    findings = found(answer, **changed)
    assert list(findings) == [code]
    assert findings[code].fix
    return findings[code]

"""The verb doctor: this machine, and a numerical canary."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core import files
from luthier.core.errors import UsageError
from luthier.core.finding import Finding

if TYPE_CHECKING:
    from luthier.watch.health import Health

CANARY = (sys.executable, "-m", "luthier.train.canary")
CANARY_SECONDS = 180
"""Most of a canary: 10 s are usual, of which the imports of torch, transformers and PEFT take most."""


def doctor(*, canary: bool = True) -> Health:
    """What is wrong with this machine for training, the gravest first, and what is well. Nothing is imported that may be broken.

    With `canary` a tiny training is run in a process of its own, and its losses compared with recorded ones.
    """
    from luthier.watch import health, machine

    seen = health.examine(machine.look())
    return seen.and_then(_canary()) if canary else seen


def write_unit(path: Path) -> Path:
    """Write a systemd unit that sets persistence mode at boot, into a file or a folder; where it lies."""
    from luthier.watch import gpus, machine

    target = path / "luthier-persistence.service" if path.is_dir() else path
    if not target.parent.is_dir():
        raise UsageError("there is no such folder", where=str(target.parent), change="name a file in a folder that is there")
    files.write(target, gpus.persistence_unit(machine.look()))
    return target


def _canary() -> Health:
    """What the canary says; where its process crashes or hangs, that is what is found."""
    from luthier.watch.health import Health

    try:
        done = subprocess.run(CANARY, capture_output=True, text=True, errors="replace", timeout=CANARY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Health(findings=(_failed(f"gave no answer in {CANARY_SECONDS} s", ""),), fine=())
    if done.returncode:  # negative where a signal ended it, which the table of failures knows by the words that torchrun has for it
        log = f"{done.stderr}\nexitcode: {done.returncode}"
        return Health(findings=(_failed(f"ended with exit code {done.returncode}", log),), fine=())
    return Health.from_json(done.stdout.splitlines()[-1])


def _failed(how: str, log: str) -> Finding:
    from luthier.watch.failures import explain

    known = explain(log)
    if known != "unknown":
        return replace(known, severity="refuse")  # what may pass in a long run must not come in a short one
    last = next((line for line in reversed(log.splitlines()[:-1]) if line.strip()), "it said nothing")
    return Finding(
        code="canary-failed",
        severity="refuse",
        message=f"The canary {how}: {last.strip()}",
        fix=f"{' '.join(CANARY)} shows where; most often versions are mixed: pip install --force-reinstall -c constraints.txt luthier",
    )

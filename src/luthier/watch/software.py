"""Findings about versions and the environment. A check's docstring is its line in docs/guide/trouble.md."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from luthier.core.finding import Finding, Severity
from luthier.watch.machine import Check, Machine

INSTALL = "pip install -c constraints.txt luthier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """A variable of the environment that harms where its value matches."""

    name: str
    value: str
    """Regular expressions for all of it."""
    does: str
    severity: Severity = "warn"


ALLOCATOR = r"PYTORCH_(?:CUDA_)?ALLOC_CONF"
SPINS = "lets waiting threads spin: up to 50 × slower on a machine that is not idle"
ROUNDS = "rounds float32 products to 10 bits, against what the recipe says"
HARMS = (
    Harm(name="CUDA_LAUNCH_BLOCKING", value="1", does="makes the processor wait for every kernel: for finding errors only"),
    Harm(name="PYTORCH_NO_CUDA_MEMORY_CACHING", value="1", does="asks the driver for every tensor anew: several times slower"),
    Harm(name="NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", value="1", does=ROUNDS),
    Harm(name=ALLOCATOR, value=r".*max_split_size_mb:[1-9]\d?(,.*)?", does="cuts the GPU's memory into pieces of less than 100 MB"),
    Harm(name=ALLOCATOR, value=r".*expandable_segments:False.*", does="lets the GPU's memory fragment", severity="note"),
    Harm(name="OMP_WAIT_POLICY", value="(?i:active)", does=SPINS),
    Harm(name="KMP_BLOCKTIME", value="infinite", does=SPINS),
    Harm(name="TOKENIZERS_PARALLELISM", value="(?i:false|0|off)", does="prepares data on one processor", severity="note"),
    Harm(name="LUTHIER_NATIVE", value="0", does="trains on a processor without the C kernels", severity="note"),
    Harm(name="NCCL_P2P_DISABLE", value="1", does="sends gradients through the host's memory, not from GPU to GPU", severity="note"),
    Harm(name="NCCL_IB_DISABLE", value="1", does="leaves InfiniBand unused", severity="note"),
    Harm(name="NCCL_SHM_DISABLE", value="1", does="sends gradients on one machine through the network's layers", severity="note"),
    Harm(name="TRANSFORMERS_CACHE", value=".+", does="is no longer read since transformers 5: HF_HOME is", severity="note"),
    Harm(name="(HF_HUB|TRANSFORMERS)_OFFLINE", value="(?i:1|on|yes|true)", does="allows only models that are here", severity="note"),
    Harm(name="PYTHONOPTIMIZE", value="[1-9]", does="removes the checks that libraries make by assert", severity="note"),
)
"""By the documentation of CUDA, PyTorch, NCCL, libgomp and the hub; 50 × was measured (docs/notes/log.md)."""


def python_untested(machine: Machine) -> Iterator[Finding]:
    """Python is a version that Luthier is not tested with, or too old for it."""
    found = machine.versions
    if not SpecifierSet(found.python_allowed).contains(found.python, prereleases=True):
        yield Finding(
            code="python-untested",
            severity="refuse",
            message=f"Python {found.python} is outside of {found.python_allowed}",
            evidence={"python": found.python, "allowed": found.python_allowed},
            fix=f"python{found.python_tested} -m venv .venv && .venv/bin/{INSTALL}",
        )
    elif found.python.split(".")[:2] != found.python_tested.split("."):
        yield Finding(
            code="python-untested",
            severity="note",
            message=f"Python is {found.python}; the tests ran with {found.python_tested}",
            evidence={"python": found.python, "tested": found.python_tested},
            fix=f"python{found.python_tested} -m venv .venv && .venv/bin/{INSTALL}",
        )


def package_missing(machine: Machine) -> Iterator[Finding]:
    """A library that Luthier needs is not installed."""
    if missing := [package.name for package in machine.versions.packages if not package.installed]:
        yield Finding(
            code="package-missing",
            severity="refuse",
            message=f"Not installed: {', '.join(missing)}",
            evidence={"packages": ", ".join(missing)},
            fix=INSTALL,
        )


def package_outside(machine: Machine) -> Iterator[Finding]:
    """A library is older or newer than Luthier allows."""
    outside = [package for package in machine.versions.packages if package.installed and not package.is_allowed]
    if outside:
        told = ", ".join(f"{package.name} {package.installed} ({package.allowed})" for package in outside)
        yield Finding(
            code="package-outside",
            severity="warn",
            message=f"Outside of what Luthier is made for: {told}",
            evidence={package.name: package.installed for package in outside},
            fix="pip install -c constraints.txt " + " ".join(package.name for package in outside),
        )


def package_untested(machine: Machine) -> Iterator[Finding]:
    """A library is allowed, but not the version that the tests ran with."""
    other = [package for package in machine.versions.packages if package.is_allowed and package.tested and not package.is_tested]
    if other:
        told = ", ".join(f"{package.name} {package.installed} ({package.tested})" for package in other)
        yield Finding(
            code="package-untested",
            severity="note",
            message=f"Not the versions that the tests ran with: {told}",
            evidence={package.name: package.installed for package in other},
            fix="pip install -c constraints.txt " + " ".join(package.name for package in other),
        )


def text_not_utf8(machine: Machine) -> Iterator[Finding]:
    """Text is not read as UTF-8 by default: rows and recipes with other letters than a to z could be misread."""
    if machine.encoding.replace("-", "") != "utf8":
        yield Finding(
            code="text-not-utf8",
            severity="warn",
            message=f"The locale reads text as {machine.encoding}: what libraries print or read may break at letters beyond a to z",
            evidence={"encoding": machine.encoding},
            fix="export LC_ALL=C.UTF-8 PYTHONUTF8=1",
        )


def one_thread(machine: Machine) -> Iterator[Finding]:
    """OMP_NUM_THREADS leaves most processors idle; torchrun and some job systems set it to 1."""
    said = machine.environment.get("OMP_NUM_THREADS", "")
    if machine.hardware.gpus or not said.isdecimal():
        return
    if machine.hardware.cores > 2 * int(said):
        yield Finding(
            code="one-thread",
            severity="warn",
            message=f"OMP_NUM_THREADS={said} leaves {machine.hardware.cores - int(said)} of {machine.hardware.cores} processors idle",
            evidence={"threads": int(said), "cores": machine.hardware.cores},
            fix="unset OMP_NUM_THREADS",
        )


def harmful_variable(machine: Machine) -> Iterator[Finding]:
    """A variable of the environment slows a run down, or changes what it computes."""
    for name, value in sorted(machine.environment.items()):
        for harm in HARMS:
            if re.fullmatch(harm.name, name) and re.fullmatch(harm.value, value):
                yield Finding(
                    code="harmful-variable",
                    severity=harm.severity,
                    message=f"{name}={value} {harm.does}",
                    evidence={"variable": name, "value": value},
                    fix=f"unset {name}",
                )


def describe(machine: Machine) -> list[str]:
    """Python and the libraries that a result depends on most."""
    named = (f"{name} {machine.versions.of(name) or 'missing'}" for name in ("torch", "transformers", "peft"))
    return [f"versions: Python {machine.versions.python}, {', '.join(named)}; {len(machine.versions.packages)} libraries looked at"]


CHECKS: tuple[Check, ...] = (
    python_untested,
    package_missing,
    package_outside,
    package_untested,
    text_not_utf8,
    one_thread,
    harmful_variable,
)

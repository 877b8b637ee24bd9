"""Findings about GPUs: driver, display, build of PyTorch, memory. A check's docstring is its line in docs/guide/trouble.md."""

from collections.abc import Iterator

from luthier.core.finding import Finding
from luthier.watch.cards import Card
from luthier.watch.failures import explain
from luthier.watch.machine import Check, Machine

DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest driver for a CUDA runtime, by its major version (docs.nvidia.com/deploy/cuda-compatibility)."""
OLDEST = {11: 3.7, 12: 5.0, 13: 7.5}
"""The oldest compute capability that a CUDA toolkit still builds for (its release notes)."""
TAKEN = 0.1
"""Share of a GPU's memory that others have, from which on it is worth knowing."""
SHARED_BYTES = 1 << 30
UNIT = """\
# Keeps the NVIDIA driver loaded between programs (persistence mode), from boot on. Written by: luthier doctor --write-unit
[Unit]
Description=Persistence mode of the NVIDIA GPUs
After=systemd-modules-load.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command} --persistence-mode=1

[Install]
WantedBy=multi-user.target
"""


def persistence_unit(machine: Machine) -> str:
    """The text of a systemd unit that sets persistence mode at boot."""
    command = machine.cards.command
    return UNIT.format(command="/usr/bin/nvidia-smi" if command == "none" else command)


def driver_trouble(machine: Machine) -> Iterator[Finding]:
    """nvidia-smi is there and fails: the driver is not loaded, or not the one that its libraries belong to."""
    if not machine.cards.said:
        return
    known = explain(machine.cards.said)
    if known != "unknown":
        yield known
        return
    yield Finding(
        code="driver-trouble",
        severity="refuse",
        message=f"nvidia-smi does not tell of the GPUs: {machine.cards.said.splitlines()[0]}",
        evidence={"gpus_on_bus": machine.cards.on_bus},
        fix="sudo dmesg | grep -i -E 'nvrm|xid' says why; then reboot, or install the driver anew",
    )


def driver_absent(machine: Machine) -> Iterator[Finding]:
    """There is an NVIDIA GPU, and no driver for it."""
    if machine.cards.command == "none" and machine.cards.on_bus:
        yield Finding(
            code="driver-absent",
            severity="warn",
            message=f"{machine.cards.on_bus} NVIDIA GPUs are in this machine, and no driver is installed: training would use the processor",
            evidence={"gpus_on_bus": machine.cards.on_bus},
            fix="Ubuntu: sudo ubuntu-drivers install, then reboot; in a container: docker run --gpus all",
        )


def driver_too_old(machine: Machine) -> Iterator[Finding]:
    """The driver is older than the CUDA that PyTorch is built with."""
    needed = DRIVERS.get(_cuda(machine), 0)
    old = [card for card in machine.cards.cards if _major(card.driver) < needed]
    if old:
        yield Finding(
            code="driver-too-old",
            severity="refuse",
            message=f"Driver {old[0].driver} is older than CUDA {machine.versions.cuda} needs, which torch is built with: {needed}",
            evidence={"driver": old[0].driver, "cuda": machine.versions.cuda, "needed": needed},
            fix="install a newer driver (Ubuntu: sudo ubuntu-drivers install, then reboot), or a torch built with an older CUDA",
        )


def torch_without_cuda(machine: Machine) -> Iterator[Finding]:
    """There are GPUs, and PyTorch is a build for processors."""
    torch = machine.versions.of("torch")
    if machine.cards.cards and torch.endswith("+cpu"):
        yield Finding(
            code="torch-without-cuda",
            severity="refuse",
            message=f"torch {torch} is a build for processors: it sees none of the {len(machine.cards.cards)} GPUs",
            evidence={"torch": torch, "gpus": len(machine.cards.cards)},
            fix="pip install --force-reinstall -c constraints.txt torch",
        )


def gpu_not_in_build(machine: Machine) -> Iterator[Finding]:
    """The GPU is older than any that PyTorch's CUDA builds kernels for."""
    oldest = OLDEST.get(_cuda(machine), 0.0)
    for number, card in enumerate(machine.cards.cards):
        if _number(card.gpu.capability) < oldest:
            yield Finding(
                code="gpu-not-in-build",
                severity="refuse",
                message=f"GPU {number}, {card.gpu.name}, has compute capability {card.gpu.capability}; torch's CUDA begins at {oldest}",
                evidence={"gpu": number, "capability": card.gpu.capability, "cuda": machine.versions.cuda},
                fix=f"CUDA_VISIBLE_DEVICES without {number}, or a torch that is built with CUDA 12.6",
            )


def gpu_drives_display(machine: Machine) -> Iterator[Finding]:
    """A GPU drives a display: the driver stops kernels that keep the screen waiting (`cudaErrorLaunchTimeout`)."""
    showing = [number for number, card in enumerate(machine.cards.cards) if card.gpu.drives_display]
    if showing:
        yield Finding(
            code="gpu-drives-display",
            severity="warn",
            message=f"GPU {_list(showing)} drives a display: the driver may kill kernels of more than 2 s, and so the run",
            evidence={"gpus": _list(showing)},
            fix="sudo systemctl isolate multi-user.target ends the desktop until the next boot; for good: plug the monitor into the "
            'board\'s own graphics, and make that primary in the firmware ("Primary Display = IGD")',
        )


def persistence_off(machine: Machine) -> Iterator[Finding]:
    """Persistence mode is off: each start waits for the driver, and settings are lost between programs."""
    off = [number for number, card in enumerate(machine.cards.cards) if not card.gpu.persistent]
    if off:
        yield Finding(
            code="persistence-off",
            severity="note",
            message=f"Persistence mode of GPU {_list(off)} is off: each start waits 1 to 3 s, and settings are lost",
            evidence={"gpus": _list(off)},
            fix="sudo nvidia-smi -pm 1; to stay after a reboot: luthier doctor --write-unit luthier-persistence.service",
        )


def gpu_memory_defect(machine: Machine) -> Iterator[Finding]:
    """A GPU's memory had errors that could not be corrected."""
    for number, card in enumerate(machine.cards.cards):
        if card.defects:
            yield Finding(
                code="gpu-memory-defect",
                severity="refuse",
                message=f"The memory of GPU {number} had {card.defects} errors since the start that could not be corrected",
                evidence={"gpu": number, "errors": card.defects},
                fix="reboot, then nvidia-smi -q -d ECC,ROW_REMAPPER; if they return, have it replaced",
            )


def gpu_mode(machine: Machine) -> Iterator[Finding]:
    """A GPU's compute mode lets no program in, or only one."""
    for number, card in enumerate(machine.cards.cards):
        if card.mode in ("Prohibited", "Exclusive_Process"):
            lets = "no program" if card.mode == "Prohibited" else "one program at a time"
            yield Finding(
                code="gpu-mode",
                severity="refuse" if card.mode == "Prohibited" else "note",
                message=f"The compute mode of GPU {number} is {card.mode}: it lets {lets} in",
                evidence={"gpu": number, "mode": card.mode},
                fix=f"sudo nvidia-smi -i {number} -c 0",
            )


def gpu_memory_taken(machine: Machine) -> Iterator[Finding]:
    """Other programs hold a good part of a GPU's memory."""
    for number, card in enumerate(machine.cards.cards):
        total, free = card.gpu.memory_bytes, card.gpu.free_bytes
        if free < (1 - TAKEN) * total:
            yield Finding(
                code="gpu-memory-taken",
                severity="note",
                message=f"Others hold {(total - free) / 1e9:.1f} of {total / 1e9:.0f} GB of GPU {number}: a plan counts with the rest",
                evidence={"gpu": number, "free_bytes": free, "memory_bytes": total},
                fix="nvidia-smi shows them",
            )


def gpus_hidden(machine: Machine) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES hides every GPU."""
    if machine.cards.cards and not machine.hardware.gpus:
        said = machine.environment.get("CUDA_VISIBLE_DEVICES", "")
        yield Finding(
            code="gpus-hidden",
            severity="warn",
            message=f"CUDA_VISIBLE_DEVICES={said} hides all {len(machine.cards.cards)} GPUs: training would use the processor",
            evidence={"gpus": len(machine.cards.cards)},
            fix="unset CUDA_VISIBLE_DEVICES",
        )


def shared_memory_small(machine: Machine) -> Iterator[Finding]:
    """/dev/shm is too small for several ranks on one machine, as Docker makes it."""
    if len(machine.cards.cards) > 1 and machine.shared_bytes < SHARED_BYTES:
        yield Finding(
            code="shared-memory-small",
            severity="warn",
            message=f"/dev/shm has {machine.shared_bytes / 1e6:.0f} MB free: NCCL, between the GPUs of one machine, may want more",
            evidence={"free_bytes": machine.shared_bytes},
            fix="docker run --shm-size=8g, or --ipc=host; else remove what killed runs left there: ls /dev/shm",
        )


def describe(machine: Machine) -> list[str]:
    """A line for each GPU, or that there is none."""
    cards = [f"GPU {number}: {_described(card)}" for number, card in enumerate(machine.cards.cards)]
    return cards or ["no GPU: training uses the processor"]


def _described(card: Card) -> str:
    return f"{card.gpu.name}, {card.gpu.memory_bytes / 1e9:.0f} GB, compute capability {card.gpu.capability}, driver {card.driver}"


def _cuda(machine: Machine) -> int:
    return _major(machine.versions.cuda)


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdecimal() else 0


def _number(capability: str) -> float:
    return float(capability) if capability.replace(".", "", 1).isdecimal() else float("inf")


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


CHECKS: tuple[Check, ...] = (
    driver_trouble,
    driver_absent,
    driver_too_old,
    torch_without_cuda,
    gpu_not_in_build,
    gpu_drives_display,
    persistence_off,
    gpu_memory_defect,
    gpu_mode,
    gpu_memory_taken,
    gpus_hidden,
    shared_memory_small,
)

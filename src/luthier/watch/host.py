"""Findings about processor, memory, limits and disk. A check's docstring is its line in docs/guide/trouble.md."""

import math
from collections.abc import Iterator

from luthier.core.finding import Finding
from luthier.core.words import gigabytes
from luthier.watch.machine import UNLIMITED, Check, Machine

FEW_BYTES = 2 * 10**9
"""Of memory: torch and transformers alone take 0.6 GB."""
SWAPPED_BYTES = 1 * 10**9
FEW_FILES = 1024
SMALL_DISK, TINY_DISK = 5 * 10**9, 200 * 10**6
"""Five checkpoints of a 20 M adapter are 1.2 GB; less than the second holds not even one."""
FEW_INODES = 10_000


def vectors_missing(machine: Machine) -> Iterator[Finding]:
    """The processor, or the virtual machine's, has no AVX2: torch is several times slower, or does not start."""
    if "sse2" in machine.flags and "avx2" not in machine.flags:  # sse2: an x86 that tells its flags
        yield Finding(
            code="vectors-missing",
            severity="warn",
            message="This processor has no AVX2: torch is several times slower, and some libraries end with an illegal instruction",
            fix="in a virtual machine, give it the host's processor type (QEMU: -cpu host)",
        )


def quota_below_cores(machine: Machine) -> Iterator[Finding]:
    """The container may use less processor time than it sees processors: threads wait for each other."""
    allowed = max(1, math.floor(machine.quota)) if machine.quota != UNLIMITED else machine.hardware.cores
    if allowed < machine.hardware.cores and "OMP_NUM_THREADS" not in machine.environment:
        yield Finding(
            code="quota-below-cores",
            severity="warn",
            message=f"The container may use {machine.quota:.3g} processors and sees {machine.hardware.cores}: threads are stopped midway",
            evidence={"quota": machine.quota, "cores": machine.hardware.cores},
            fix=f"export OMP_NUM_THREADS={allowed}; or docker run --cpuset-cpus=0-{allowed - 1} in place of --cpus",
        )


def machine_busy(machine: Machine) -> Iterator[Finding]:
    """Other programs use the processors."""
    if machine.load > 1.5 * machine.hardware.cores:
        yield Finding(
            code="machine-busy",
            severity="note",
            message=f"{machine.load:.0f} processes share {machine.hardware.cores} processors: a run takes that much longer",
            evidence={"load": round(machine.load, 1), "cores": machine.hardware.cores},
            fix="top shows them",
        )


def memory_short(machine: Machine) -> Iterator[Finding]:
    """There is hardly any memory free."""
    if machine.free_bytes < FEW_BYTES:
        yield Finding(
            code="memory-short",
            severity="warn",
            message=f"{machine.free_bytes / 1e9:.1f} of {machine.hardware.memory_bytes / 1e9:.1f} GB of memory are free: it may run out",
            evidence={"free_bytes": machine.free_bytes, "memory_bytes": machine.hardware.memory_bytes},
            fix="ps aux --sort=-rss | head shows who has it; a container gets more with docker run -m, a job with sbatch --mem",
        )


def swapping(machine: Machine) -> Iterator[Finding]:
    """Memory has been written to swap: a run whose pages go there is a hundred times slower."""
    if machine.swapped_bytes > SWAPPED_BYTES and machine.free_bytes < machine.hardware.memory_bytes / 4:
        yield Finding(
            code="swapping",
            severity="note",
            message=f"{machine.swapped_bytes / 1e9:.1f} GB are in swap, and memory is short: a run that is swapped out hardly moves",
            evidence={"swapped_bytes": machine.swapped_bytes, "free_bytes": machine.free_bytes},
            fix="end what is not needed; then sudo swapoff -a && sudo swapon -a brings the rest back",
        )


def memory_with_holes(machine: Machine) -> Iterator[Finding]:
    """Luthier's allocator cannot be had, with which training on a processor takes less memory."""
    whose = machine.hardware.allocator
    if whose in ("jemalloc", "glibc") and not machine.hardware.gpus:
        yield Finding(
            code="memory-with-holes",
            severity="note",
            message=f"Training on this processor has {whose}'s memory, whose holes between tensors may come to half of what they take",
            fix="sudo apt-get install gcc libc6-dev; ulimit -v and -d unlimited; vm.overcommit_memory 0 or 1; else libjemalloc2",
        )


def few_open_files(machine: Machine) -> Iterator[Finding]:
    """A process may open only few files."""
    if machine.open_files < FEW_FILES:
        yield Finding(
            code="few-open-files",
            severity="warn",
            message=f"A process may open {machine.open_files:.0f} files; a base in many parts, ranks and loaders want more",
            evidence={"limit": machine.open_files},
            fix="ulimit -n 65536",
        )


def file_size_limited(machine: Machine) -> Iterator[Finding]:
    """A limit on the size of files would cut a checkpoint."""
    if machine.file_bytes != UNLIMITED:
        yield Finding(
            code="file-size-limited",
            severity="warn",
            message=f"A file may have {machine.file_bytes / 1e6:.3g} MB: a larger checkpoint cannot be saved",
            evidence={"limit_bytes": machine.file_bytes},
            fix="ulimit -f unlimited",
        )


def disk_not_writable(machine: Machine) -> Iterator[Finding]:
    """Runs cannot be written where they would lie."""
    if not machine.runs.writable:
        yield Finding(
            code="disk-not-writable",
            severity="refuse",
            message=f"Nothing can be written to {machine.runs.path}, where runs would lie",
            evidence={"folder": str(machine.runs.path), "file_system": machine.runs.kind},
            fix=f"export LUTHIER_RUNS=/a/folder/of/yours; or sudo chown $USER {machine.runs.path}; or mount it for writing",
        )


def locks_missing(machine: Machine) -> Iterator[Finding]:
    """Locks do not hold where runs lie: two trainings could write into one run."""
    if machine.runs.writable and not machine.runs.locks:
        yield Finding(
            code="locks-missing",
            severity="refuse",
            message=f"Locks do not hold under {machine.runs.path} ({machine.runs.kind}): two trainings could write into one run",
            evidence={"folder": str(machine.runs.path), "file_system": machine.runs.kind},
            fix="export LUTHIER_RUNS=/a/local/folder; for NFS: mount it with version 4, or without nolock",
        )


def disk_small(machine: Machine) -> Iterator[Finding]:
    """The disk that runs lie on is nearly full."""
    runs = machine.runs
    if runs.free_bytes < SMALL_DISK or runs.free_files < FEW_INODES:
        yield Finding(
            code="disk-small",
            severity="refuse" if runs.free_bytes < TINY_DISK or not runs.free_files else "warn",
            message=f"The disk of {runs.path} has room for {gigabytes(runs.free_bytes)} and {runs.free_files:,} files",
            evidence={"free_bytes": runs.free_bytes, "free_files": runs.free_files},
            fix="export LUTHIER_RUNS=/a/larger/disk; du -sh runs/* prepared/* shows what is there",
        )


def disk_in_memory(machine: Machine) -> Iterator[Finding]:
    """Runs would lie in memory, and be gone after a reboot."""
    if machine.runs.in_memory:
        yield Finding(
            code="disk-in-memory",
            severity="warn",
            message=f"{machine.runs.path} lies in memory ({machine.runs.kind}): runs take memory, and a reboot removes them",
            evidence={"file_system": machine.runs.kind},
            fix="export LUTHIER_RUNS=/a/folder/on/a/disk",
        )


def disk_on_network(machine: Machine) -> Iterator[Finding]:
    """Runs would lie on another machine's disk, which is slower to save to and may go away."""
    if machine.runs.on_network:
        yield Finding(
            code="disk-on-network",
            severity="note",
            message=f"{machine.runs.path} is on a network disk ({machine.runs.kind}): a save takes as long as the network does",
            evidence={"file_system": machine.runs.kind},
            fix="export LUTHIER_RUNS=/a/local/folder, and copy what should stay",
        )


def describe(machine: Machine) -> list[str]:
    """Processor, memory, and the runs' disk."""
    hardware, runs = machine.hardware, machine.runs
    own = "computes" if hardware.bfloat16 else "has no instructions for"
    swap = f", {machine.swapped_bytes / 1e9:.1f} GB in swap" if machine.swapped_bytes else ""
    disk = [f"{gigabytes(runs.free_bytes)} free", *filter(None, (runs.kind, "locks hold" if runs.locks else ""))]
    return [
        f"processor: {hardware.processor}, {hardware.cores} cores, {own} bfloat16",
        f"memory: {machine.free_bytes / 1e9:.1f} of {hardware.memory_bytes / 1e9:.1f} GB free{swap}",
        f"runs: {runs.path}, {', '.join(disk)}",
    ]


CHECKS: tuple[Check, ...] = (
    vectors_missing,
    quota_below_cores,
    machine_busy,
    memory_short,
    swapping,
    memory_with_holes,
    few_open_files,
    file_size_limited,
    disk_not_writable,
    locks_missing,
    disk_small,
    disk_in_memory,
    disk_on_network,
)

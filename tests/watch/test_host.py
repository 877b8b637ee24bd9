"""Processor, memory, limits and disk: each trouble is found, and what just is none is not."""

from dataclasses import replace
from typing import Any

import pytest

from luthier.watch.health import examine
from luthier.watch.machine import UNLIMITED, look, quota_of
from tests.watch.machines import DISK, PROCESSOR, found, machine, only


def test_a_processor_without_avx2_is_slow() -> None:
    assert only("vectors-missing", flags=frozenset({"sse2", "avx"})).severity == "warn"
    assert found(flags=frozenset({"asimd", "bf16"})) == {}  # ARM


@pytest.mark.parametrize(("text", "quota"), [("150000 100000\n", 1.5), ("max 100000\n", UNLIMITED)])
def test_a_quota_is_processors_worth_of_time(text: str, quota: float) -> None:
    assert quota_of(text) == quota


def test_a_quota_below_the_processors_names_the_threads_that_fit() -> None:
    assert only("quota-below-cores", quota=2.5).fix.startswith("export OMP_NUM_THREADS=2;")
    assert found(quota=16.0) == {}
    assert "quota-below-cores" not in found(quota=2.5, environment={"OMP_NUM_THREADS": "2"})


def test_without_our_own_allocator_training_on_a_processor_leaves_holes() -> None:
    for name in ("jemalloc", "glibc"):
        without = replace(PROCESSOR, allocator=name)  # type: ignore[arg-type]  # a name of a kind
        assert "gcc" in only("memory-with-holes", name, hardware=without).fix
        assert found(hardware=replace(without, gpus=machine().hardware.gpus)) == {}  # a GPU's memory is PyTorch's own affair
    assert found("", hardware=PROCESSOR) == found("", hardware=replace(PROCESSOR, allocator="other")) == {}


@pytest.mark.parametrize(
    ("code", "changed", "severity"),
    [
        ("machine-busy", {"load": 40.0}, "note"),
        ("memory-short", {"free_bytes": 10**9}, "warn"),
        ("swapping", {"swapped_bytes": 8 * 10**9, "free_bytes": 20 * 10**9}, "note"),
        ("few-open-files", {"open_files": 256}, "warn"),
        ("file-size-limited", {"file_bytes": 1 << 20}, "warn"),
        ("disk-not-writable", {"runs": replace(DISK, writable=False, locks=False)}, "refuse"),
        ("locks-missing", {"runs": replace(DISK, locks=False)}, "refuse"),
        ("disk-small", {"runs": replace(DISK, free_bytes=10**9)}, "warn"),
        ("disk-small", {"runs": replace(DISK, free_bytes=10**8)}, "refuse"),
        ("disk-small", {"runs": replace(DISK, free_files=12)}, "warn"),
        ("disk-in-memory", {"runs": replace(DISK, kind="tmpfs")}, "warn"),
        ("disk-on-network", {"runs": replace(DISK, kind="nfs4")}, "note"),
        ("disk-on-network", {"runs": replace(DISK, kind="fuse.sshfs")}, "note"),
    ],
)
def test_a_trouble_is_found_alone(code: str, changed: dict[str, Any], severity: str) -> None:
    assert only(code, **changed).severity == severity


@pytest.mark.parametrize(
    "changed",
    [
        {"load": 20.0},
        {"free_bytes": 3 * 10**9},
        {"swapped_bytes": 8 * 10**9},  # written out long ago, with memory to spare now
        {"open_files": UNLIMITED},
        {"runs": replace(DISK, free_bytes=6 * 10**9)},
        {"runs": replace(DISK, kind="overlay")},
    ],
)
def test_what_just_is_no_trouble_is_not_found(changed: dict[str, Any]) -> None:
    assert found(**changed) == {}


def test_the_gravest_comes_first_and_decides_whether_anything_is_broken() -> None:
    health = examine(machine(load=40.0, open_files=256, runs=replace(DISK, writable=False)))
    assert [finding.severity for finding in health.findings] == ["refuse", "warn", "note"]
    assert health.broken
    assert not examine(machine(load=40.0, open_files=256)).broken


def test_a_sound_machine_is_told_in_a_line_each() -> None:
    fine = examine(machine()).fine
    assert [line.partition(":")[0] for line in fine] == ["GPU 0", "processor", "memory", "runs", "versions"]
    assert "runs, 1000 GB free, ext4, locks hold" in fine[3]
    assert examine(machine("", hardware=PROCESSOR)).fine[0] == "no GPU: training uses the processor"


def test_this_machine_can_be_looked_at() -> None:
    seen = look()
    assert seen.runs.free_bytes > 0
    assert seen.versions.of("torch")
    assert len(examine(seen).fine) >= 5

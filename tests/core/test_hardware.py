"""What the kernel and nvidia-smi say is read rightly, on machines that are not here too."""

from pathlib import Path

import pytest

from luthier.core import hardware
from luthier.core.hardware import Gpu, available_bytes, free_disk_bytes, free_memory_bytes, gpus_of, processor_flags, this_machine, visible

TWO_GPUS = """\
NVIDIA GeForce RTX 5090, 32607, 494, 31843, 12.0, Disabled, Disabled
NVIDIA GeForce RTX 5090, 32607, 494, 29870, 12.0, Enabled, Enabled
"""
"""Seed 000's machine: the second card drives a display."""
SHARED_MEMORY = "NVIDIA GB10, [N/A], [N/A], [N/A], 12.1, [N/A], Enabled\n"


@pytest.mark.parametrize(
    ("said", "names"), [(None, "abc"), ("", ""), ("1", "b"), ("2, 0", "ca"), ("0,7,1", "a"), ("-1", ""), ("GPU-5ebe9f43", "a")]
)
def test_programs_see_the_gpus_that_cuda_visible_devices_leaves(said: str | None, names: str) -> None:
    gpus = gpus_of("".join(f"{name}, 24576, 512, 24000, 8.6, Disabled, Enabled\n" for name in "abc"))
    assert "".join(gpu.name for gpu in visible(gpus, said)) == names


def test_gpus_are_read_with_memory_display_and_persistence() -> None:
    first, second = gpus_of(TWO_GPUS)
    assert first == Gpu(
        name="NVIDIA GeForce RTX 5090",
        memory_bytes=(32607 - 494) * 2**20,
        free_bytes=31843 * 2**20,
        capability="12.0",
        drives_display=False,
        persistent=False,
    )
    assert (second.drives_display, second.persistent) == (True, True)


def test_what_nvidia_smi_does_not_know_is_nothing() -> None:
    (gpu,) = gpus_of(SHARED_MEMORY)
    assert (gpu.memory_bytes, gpu.free_bytes, gpu.drives_display) == (0, 0, False)


def test_an_answer_without_gpus_has_none() -> None:
    assert gpus_of("No devices were found\n") == ()


def test_flags_are_the_first_processors_on_x86_and_on_arm() -> None:
    assert processor_flags("processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n") == {"fpu", "avx512_bf16"}
    assert "bf16" in processor_flags("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n")
    assert processor_flags("") == frozenset()


@pytest.mark.parametrize(("flags", "library"), [("avx512_bf16 amx_bf16", "MKL"), ("avx512_bf16", "oneDNN"), ("", "oneDNN")])
def test_float32_is_left_to_mkl_where_onednn_would_round_it(
    flags: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "PROCESSOR", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"model name\t: one\nflags\t\t: fpu {flags}\n")
    assert this_machine().float32_by == library


def test_available_memory_is_what_the_kernel_calls_so() -> None:
    assert available_bytes("MemTotal: 24684092 kB\nMemFree: 19619564 kB\nMemAvailable:   24069876 kB\n") == 24069876 * 1024


def test_memory_and_disk_of_this_machine_are_free_in_part() -> None:
    machine = this_machine()
    assert 0 < free_memory_bytes() <= machine.memory_bytes
    assert free_disk_bytes(Path("a/folder/that/is/not/there")) > 0


def test_a_control_group_limits_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path)
    for name, text in {"max": str(3 << 20), "current": str(2 << 20), "stat": f"anon 7\ninactive_file {1 << 20}\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert this_machine().memory_bytes == 3 << 20
    assert free_memory_bytes() == 2 << 20

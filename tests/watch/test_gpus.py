"""What nvidia-smi says of GPUs that are not here: each trouble is found, and what just is none is not."""

from dataclasses import replace
from pathlib import Path

import pytest

from luthier.watch.cards import Cards, nvidia_devices
from luthier.watch.gpus import persistence_unit
from tests.watch.machines import H200, PROCESSOR, found, machine, only, versions

SEED_000 = """\
NVIDIA GeForce RTX 5090, 32607, 494, 31843, 12.0, Disabled, Enabled, 580.95.05, Default, [N/A]
NVIDIA GeForce RTX 5090, 32607, 494, 29870, 12.0, Enabled, Disabled, 580.95.05, Default, [N/A]
"""
"""The second card drives a display, and its persistence mode is off."""
FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that it is installed."


def without_answer(**said: str) -> Cards:
    return Cards(**{"cards": (), "command": "/usr/bin/nvidia-smi", "on_bus": 1, **said})


def test_a_sound_gpu_has_no_findings() -> None:
    assert found() == {}


def test_the_machine_of_seed_000_is_told_of_display_and_persistence() -> None:
    findings = found(SEED_000)
    assert list(findings) == ["gpu-drives-display", "persistence-off"]
    assert [finding.evidence["gpus"] for finding in findings.values()] == ["1", "1"]
    assert "systemctl isolate" in findings["gpu-drives-display"].fix
    assert findings["persistence-off"].fix.startswith("sudo nvidia-smi -pm 1")


@pytest.mark.parametrize(("driver", "cuda"), [("575.64", "13.0.96"), ("470.86", "12.8.90")])
def test_a_driver_older_than_the_cuda_of_torch_is_refused(driver: str, cuda: str) -> None:
    finding = only("driver-too-old", H200.replace("580.95.05", driver), versions=versions(cuda=cuda))
    assert (finding.severity, finding.evidence["driver"]) == ("refuse", driver)


@pytest.mark.parametrize(("driver", "cuda"), [("580.65.06", "13.0.96"), ("525.60.13", "12.8.90"), ("470.86", ""), ("[N/A]", "")])
def test_a_driver_that_is_new_enough_is_not_found(driver: str, cuda: str) -> None:
    assert found(H200.replace("580.95.05", driver), versions=versions(cuda=cuda)) == {}


def test_a_torch_for_processors_sees_no_gpu() -> None:
    assert only("torch-without-cuda", versions=versions(cuda="", torch="2.13.0+cpu")).severity == "refuse"
    assert found("", versions=versions(cuda="", torch="2.13.0+cpu")) == {}  # without a GPU it is the right one


def test_a_gpu_that_cuda_13_no_longer_builds_for_is_refused() -> None:
    volta = "Tesla V100-SXM2-16GB, 16384, 300, 16000, 7.0, Disabled, Enabled, 580.95.05, Default, 0\n"
    assert only("gpu-not-in-build", volta).evidence["capability"] == "7.0"
    assert found(volta, versions=versions(cuda="12.6.77")) == {}
    assert found(volta.replace(" 7.0,", " 7.5,")) == {}


def test_memory_that_is_defective_is_refused() -> None:
    assert only("gpu-memory-defect", H200.replace("Default, 0", "Default, 3")).evidence == {"gpu": 0, "errors": 3}


@pytest.mark.parametrize(("mode", "severity"), [("Prohibited", "refuse"), ("Exclusive_Process", "note")])
def test_a_compute_mode_that_keeps_programs_out_is_found(mode: str, severity: str) -> None:
    finding = only("gpu-mode", H200.replace("Default", mode))
    assert (finding.severity, finding.fix) == (severity, "sudo nvidia-smi -i 0 -c 0")


def test_memory_that_others_hold_is_a_note() -> None:
    finding = only("gpu-memory-taken", H200.replace("142700", "92700"))
    assert finding.severity == "note"
    assert "53.0 of 150 GB" in finding.message
    assert found(H200.replace("142700", "133700")) == {}


def test_hidden_gpus_are_found() -> None:
    hidden = {"hardware": PROCESSOR, "environment": {"CUDA_VISIBLE_DEVICES": "-1"}}
    assert "CUDA_VISIBLE_DEVICES=-1" in only("gpus-hidden", **hidden).message


def test_shared_memory_matters_to_several_gpus() -> None:
    assert only("shared-memory-small", H200 * 2, shared_bytes=64 * 10**6).fix.startswith("docker run --shm-size")
    assert found(H200, shared_bytes=64 * 10**6) == {}


def test_a_driver_that_is_not_loaded_is_told_by_the_table_of_failures() -> None:
    assert only("driver-absent", "", cards=without_answer(said=FAILED)).severity == "refuse"
    mismatch = without_answer(said="Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95")
    assert "reboot" in only("driver-mismatch", "", cards=mismatch).fix
    assert only("driver-trouble", "", cards=without_answer(said="Unable to determine the device handle")).severity == "refuse"


def test_a_gpu_without_a_driver_is_a_warning() -> None:
    assert only("driver-absent", "", cards=Cards(cards=(), on_bus=2)).severity == "warn"
    assert found("", cards=Cards(cards=())) == {}


def test_nvidia_gpus_are_counted_on_the_bus(tmp_path: Path) -> None:
    for name, vendor, kind in (("gpu", "0x10de", "0x030200"), ("its-audio", "0x10de", "0x040300"), ("other", "0x1a03", "0x030000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert nvidia_devices(tmp_path) == 1
    assert nvidia_devices(tmp_path / "absent") == 0


def test_the_unit_sets_persistence_mode_with_the_machines_own_nvidia_smi() -> None:
    sound = machine()
    elsewhere = replace(sound, cards=replace(sound.cards, command="/opt/bin/nvidia-smi"))
    assert "\nExecStart=/opt/bin/nvidia-smi --persistence-mode=1\n" in persistence_unit(elsewhere)
    assert "\nExecStart=/usr/bin/nvidia-smi --persistence-mode=1\n" in persistence_unit(replace(sound, cards=Cards(cards=())))
    assert "WantedBy=multi-user.target" in persistence_unit(sound)

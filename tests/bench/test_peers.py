"""What the peers are given: the same torch as Luthier, and settings that name an environment that can be made."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.settings import CPU_PEERS, GPU_PEERS, PEERS, Allocator, allocating, allocators, luthier
from luthier.core.environment import KEEPING, installed

ROOT = Path(__file__).parents[2]
PINS = ROOT / "bench" / "peers"


@pytest.mark.parametrize("name", ["trl", "litgpt", "llama-factory"])
def test_every_version_is_pinned_and_torch_is_luthiers(name: str) -> None:
    pins = (PINS / f"{name}.txt").read_text().splitlines()
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)] == []
    (torch_pin,) = (pin for pin in (ROOT / "constraints.txt").read_text().splitlines() if pin.startswith("torch=="))
    assert torch_pin in pins


def test_every_peer_has_an_environment_and_a_worker() -> None:
    assert {*CPU_PEERS, *GPU_PEERS} <= set(PEERS)
    for setting in PEERS.values():
        assert (PINS / f"{setting.environment}.txt").exists()
        assert (ROOT / f"{setting.worker.replace('.', '/')}.py").exists()


def test_a_variant_of_luthier_is_called_by_its_overrides() -> None:
    assert luthier("").name == "luthier"
    assert luthier("data.packing=bins lora.r=8").options == {"overrides": ["data.packing=bins", "lora.r=8"]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_gpu_benchmark_says_so() -> None:
    answer = subprocess.run([sys.executable, "bench/train.py", "--gpu"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 1
    assert answer.stderr == "bench: --gpu: torch sees no CUDA device here; run it on a machine with a GPU and a CUDA build of torch\n"


@pytest.mark.parametrize("allocator", allocators())
def test_all_contestants_have_the_same_allocator_and_keep_freed_memory_unless_their_setting_says_otherwise(allocator: Allocator) -> None:
    everyone = [luthier(""), *PEERS.values()]
    given = {setting.name: allocating(setting, allocator) for setting in everyone}
    assert {variables["LD_PRELOAD"] for variables in given.values()} == {next(installed()) if allocator == "jemalloc" else ""}
    keeping = {name for name, variables in given.items() if len(variables) > 1}
    assert keeping == {setting.name for setting in everyone if setting.kept}
    assert "trl-default" not in keeping and {"luthier", "trainer", "trl-best"} <= keeping
    if allocator == "jemalloc":
        assert {variables.get("MALLOC_CONF", KEEPING) for variables in given.values()} == {KEEPING}

"""What the CPU is told before training: keep freed memory, and multiply float32 by the faster library where it is as accurate."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest
import torch

from luthier.core.environment import AT_START, KEEPING, blocks, installed
from luthier.train.host import choose_float32_products, prepare_host

FAULTS = """
import resource, sys
import numpy as np
if sys.argv[1] == "kept":
    from luthier.train.host import keep_freed_memory
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(40_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def page_faults(way: str) -> int:
    """In a process of its own: what malloc is told holds until its end."""
    done = subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that hands memory back")
def test_freed_memory_is_kept_and_not_faulted_in_again() -> None:
    assert page_faults("kept") < 100 < page_faults("handed back")


RELEASED = """
import sys
import numpy as np
from luthier.train.host import keep_freed_memory, release_freed_memory
keep_freed_memory()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
blocks = [np.ones(1_000_000, np.uint8) for _ in range(200)]
last = blocks[-1]
del blocks
kept = resident() - before
release_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(not any(installed()), reason="needs jemalloc (apt install libjemalloc2)")
def test_jemalloc_keeps_freed_memory_until_it_is_released() -> None:
    variables = {**os.environ, "LD_PRELOAD": next(installed()), "MALLOC_CONF": KEEPING}
    kept, released = released_by(variables)
    assert released < 20e6 < 190e6 < kept


@pytest.mark.skipif(blocks().library is None, reason=f"our own allocator cannot be had here: {blocks().note}")
def test_our_own_allocator_keeps_freed_memory_until_it_is_released() -> None:
    kept, released = released_by({**os.environ, "LD_PRELOAD": blocks().note})
    assert released < 20e6 < 190e6 < kept


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that keeps memory here")
def test_glibc_keeps_freed_memory_until_it_is_released() -> None:
    kept, released = released_by({**os.environ, "LD_PRELOAD": "", **AT_START})
    assert released < 20e6 < 190e6 < kept


def released_by(variables: Mapping[str, str]) -> tuple[int, int]:
    """Bytes that a process holds of 200 MB that it has freed: before, and after it is told to release them."""
    done = subprocess.run([sys.executable, "-c", RELEASED], env=variables, capture_output=True, text=True, timeout=120, check=True)
    kept, released = done.stdout.split()
    return int(kept), int(released)


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def product_error() -> float:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(200, 200, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    return ((left @ right).double() - exact).norm().item() / exact.norm().item()


def test_float32_products_stay_as_accurate_as_they_were(precision: None) -> None:
    torch.set_float32_matmul_precision("highest")
    before = product_error()
    chosen = choose_float32_products()
    assert torch.get_float32_matmul_precision() == chosen
    assert product_error() <= 3 * before < 3e-6


def test_a_library_that_rounds_its_inputs_is_not_chosen(precision: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As oneDNN does on a CPU with matrix units for bfloat16."""
    matmul = torch.Tensor.__matmul__

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if torch.get_float32_matmul_precision() == "medium" and left.dtype == torch.float32:
            return matmul(left.bfloat16().float(), right.bfloat16().float())
        return matmul(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert choose_float32_products() == torch.get_float32_matmul_precision() == "highest"


def test_a_gpus_host_is_left_alone(precision: None) -> None:
    torch.set_float32_matmul_precision("high")
    prepare_host(torch.device("cuda"))
    assert torch.get_float32_matmul_precision() == "high"

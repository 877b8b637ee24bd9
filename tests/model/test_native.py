"""The C kernels in torch's process: with torch's OpenMP, and without what would change its arithmetic."""

import os
from pathlib import Path

import pytest
import torch

from luthier.core.compiled import compilers
from luthier.model.native import native

without = not compilers() or os.environ.get("LUTHIER_NATIVE") == "0"
pytestmark = pytest.mark.skipif(without, reason="no C compiler on this machine, or switched off by LUTHIER_NATIVE=0")


def test_it_shares_the_openmp_runtime_that_torch_brought() -> None:
    assert native().library is not None
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if Path(line.split()[-1]).name.startswith(("libgomp", "libomp", "libiomp"))}
    assert len(runtimes) == 1
    assert Path(torch.__file__).parent in Path(runtimes.pop()).parents


def test_denormal_numbers_still_count() -> None:
    """A library linked with -ffast-math would turn them off for the whole process when it is loaded."""
    assert native().library is not None
    assert (torch.tensor([1e-40]) * torch.tensor([0.5])).item() > 0

"""Memory that is short is known for what it is, and nothing else is taken for it."""

import pytest
import torch

from luthier.model.peak import is_out_of_memory, peak_memory

CPU = torch.device("cpu")


def test_torchs_own_error_means_that_memory_is_short() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("too long"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_a_fault(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) == short


def test_the_peak_is_that_of_the_time_watched() -> None:
    with peak_memory(CPU) as before:
        pass
    with peak_memory(CPU) as peak:
        torch.ones(30_000_000)
    assert peak.num_bytes > before.num_bytes + 80_000_000

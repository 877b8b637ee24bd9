"""The CPU made ready for training: memory that is kept, and float32 products by the faster library where it is as accurate."""

import ctypes
import sys

import torch

M_MXFAST, M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = 1, -1, -2, -3
"""Of glibc's malloc.h."""
ALL_ARENAS = 4096
"""MALLCTL_ARENAS_ALL of jemalloc.h."""
KEPT = (1 << 31) - 1
"""Bytes above which memory is handed back: more than a step ever frees at once."""


def prepare_host(device: torch.device) -> None:
    """Both, where training is on the CPU."""
    if device.type == "cpu":
        keep_freed_memory()
        choose_float32_products()


def keep_freed_memory() -> bool:
    """Whether glibc now keeps what is freed for the next step, instead of handing it back and faulting it in again page by page.

    A step allocates the same tensors over and over; bfloat16 products with fresh pages ran at 130–460 GFLOP/s, with kept ones at 870
    (2026-11-20, Zen 5, 2 threads, torch 2.13). Small pieces are joined to their neighbours when freed. Where jemalloc is in its place, its
    own settings say the same (both: `core/environment.py`), and blocks.c keeps all large blocks in any case.
    """
    libc = _library("malloc_trim")
    options = ((M_MMAP_THRESHOLD, KEPT), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, 64 << 20), (M_MXFAST, 0))
    return libc is not None and all([libc.mallopt(option, value) for option, value in options])


def release_freed_memory() -> None:
    """Hand back what is kept, by `keep_freed_memory`, jemalloc or blocks.c, so that what comes later is not counted on top of it."""
    if (own := _library("luthier_release_blocks")) is not None:
        own.luthier_release_blocks()
    if (jemalloc := _library("mallctl")) is not None:
        jemalloc.mallctl(b"arena.%d.purge" % ALL_ARENAS, None, None, None, ctypes.c_size_t(0))
    elif (libc := _library("malloc_trim")) is not None:
        libc.malloc_trim(0)


def choose_float32_products() -> str:
    """The precision of float32 products on the CPU: `medium`, oneDNN's, where it is as accurate as `highest`; on AMX it rounds to bfloat16.

    oneDNN's were 2.2 × as fast with an error of 4.1e-7 against 2.5e-7 (2026-11-20, Zen 5).
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    errors = {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        errors[precision] = ((left @ right).double() - exact).norm().item()
    chosen = "medium" if errors["medium"] <= 3 * errors["highest"] else "highest"
    torch.set_float32_matmul_precision(chosen)
    return chosen


def _library(function: str) -> ctypes.CDLL | None:
    """All that the process has loaded, where this is in it: malloc_trim is glibc's, mallctl jemalloc's, the other
    one that of blocks.c (`core/environment.py`)."""
    loaded = ctypes.CDLL(None) if sys.platform == "linux" else None
    return loaded if hasattr(loaded, function) else None

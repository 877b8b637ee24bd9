"""The most memory in use while something runs."""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

SAMPLE_SECONDS = 0.01  # between two looks at the process's resident memory


OUT_OF_MEMORY = ("can't allocate memory", "could not create a primitive", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
"""What torch, oneDNN and CUDA's libraries say in a RuntimeError when there is no memory left."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory was short."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in OUT_OF_MEMORY)


def used_memory(device: torch.device) -> int:
    """Bytes in use now: what PyTorch reserved on a GPU at most, else what is resident of the process."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else psutil.Process().memory_info().rss


@dataclass(slots=True)
class Peak:
    """The most memory in use while it was watched; `num_bytes` is final once the watching ends."""

    num_bytes: int = 0


@contextmanager
def peak_memory(*devices: torch.device) -> Iterator[Peak]:
    """Watch memory: what PyTorch reserved on a GPU, of several on the fullest, else the process's resident memory, looked at every 10 ms.

    The kernel's own high-water mark of resident memory would count what the process took before.
    """
    peak = Peak()
    if devices[0].type == "cuda":
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.num_bytes = max(map(torch.cuda.max_memory_reserved, devices))
        return
    process, done = psutil.Process(), threading.Event()

    def watch() -> None:
        while True:
            peak.num_bytes = max(peak.num_bytes, process.memory_info().rss)
            if done.wait(SAMPLE_SECONDS):
                return

    watcher = threading.Thread(target=watch, name="peak memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()

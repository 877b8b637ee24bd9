"""Bytes a second that this processor reads from memory: no token of an answer comes sooner than its weights."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

THREAD_BYTES, MOST_BYTES = 128 << 20, 2 << 30
"""That each thread reads, and all: caches hold no more than a part of it."""
TIMES = 5


def memory_bandwidth(threads: int) -> float:
    """What so many threads read together, by their own processor time: a machine that is busy with others shows what it has all the same.

    14.7 GB/s with one thread and 29 with two, beside a load of 7 (2026-11-29, Xeon, two cores); by the clock it would have been 4.
    """
    size = min(THREAD_BYTES, MOST_BYTES // threads) // 8
    with ThreadPoolExecutor(threads) as pool:
        arrays = list(pool.map(np.ones, [size] * threads))
        slowest = [max(pool.map(_seconds, arrays)) for _ in range(TIMES)]
    return threads * size * 8 / min(slowest)


def _seconds(array: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    began = time.thread_time()
    array.max()
    return time.thread_time() - began

"""What the environment must say before libraries are loaded. A user's own value goes before; plan/host.py counts with these."""

import os
import sys
from collections.abc import Sequence

PRODUCTS_KEPT = 64
"""Shapes of matrix products that oneDNN and ideep each keep, 0.57 MB in both: rows of many lengths would fill their 1,024. With 64 a step
takes as long as with 512 (1.74 and 1.69 s, 4.28 and 4.2 s of ragged packs, models of 5 and 47 M)."""
SETTINGS = {
    # Threads that wait spin for some 0.3 ms, then sleep: spinning on, they train 50 × slower beside other work, or worse; sleeping at once
    # costs a fifth of a step on a quiet machine (docs/notes/log.md).
    "GOMP_SPINCOUNT": "20000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(PRODUCTS_KEPT),
    "LRU_CACHE_CAPACITY": str(PRODUCTS_KEPT),
}
AT_START = {
    # torch asks for aligned memory, and glibc puts the scraps of aligning into a cache that never joins them to their neighbours again: no
    # freed tensor's place fits the next tensor. Without that cache a run of ragged packs takes up to a fifth less memory.
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
}
"""Read by the C library when a process starts, and so only by one that is started anew."""
VERBS = {"train", "quickstart"}


def settle(words: Sequence[str]) -> None:
    """Set what is not set; start the process anew where a verb that trains needs it to have been set from the start."""
    missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    if "OMP_WAIT_POLICY" in os.environ:  # to libgomp the count matters more
        missing.pop("GOMP_SPINCOUNT", None)
    os.environ.update(missing)
    late = {name: value for name, value in AT_START.items() if name not in os.environ}
    if late and sys.platform == "linux" and VERBS.intersection(words):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **late})

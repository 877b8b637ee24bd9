"""What the environment must say before libraries are loaded. A user's own value goes before; plan/host.py counts with these."""

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from luthier.core.compiled import Compiled, Source, compiled

Allocator = Literal["luthier", "jemalloc", "glibc", "other"]
"""Who answers malloc; ours for large blocks only."""

PRODUCTS_KEPT = 64
"""Shapes of matrix products that oneDNN and ideep each keep, 0.57 MB in both: rows of many lengths would fill their 1,024. With 64 a step
takes as long as with 512 (1.74 and 1.69 s, 4.28 and 4.2 s of ragged packs, models of 5 and 47 M)."""
SETTINGS = {
    # Threads that wait spin for some 0.3 ms, then sleep: spinning on, they train 50 × slower beside other work, or worse; sleeping at once
    # costs a fifth of a step on a quiet machine (docs/notes/log.md).
    "GOMP_SPINCOUNT": "20000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(PRODUCTS_KEPT),
    "LRU_CACHE_CAPACITY": str(PRODUCTS_KEPT),
    # MKL keeps the workspace of each shape of product that it has seen, 7 to 30 MB in all. Without them a step of float32 takes 1 to 2 %
    # longer.
    "MKL_DISABLE_FAST_MM": "1",
}
BLOCKS = Source(file=Path(__file__).with_name("blocks.c"), compile=("-O2", "-fPIC", "-std=gnu11"), link=("-shared", "-ldl", "-lpthread"))
"""Our own allocator of large blocks, before the one there is: without holes between them."""
JEMALLOC = "libjemalloc.so.2"
KEEPING = "oversize_threshold:0,lg_extent_max_active_fit:16,dirty_decay_ms:-1,muzzy_decay_ms:-1"
"""jemalloc hands nothing back by itself: faulting it in again costs a tenth of a step. And what it keeps is for all: unasked, blocks of
8 MiB and more have an arena of their own, and a freed block serves none that is 64 × smaller (MB of three runs: 598, 321 and 236, with this
481, 252 and 183; docs/notes/log.md)."""
AT_START = {
    # torch asks for aligned memory, and glibc puts the scraps of aligning into a cache that never joins them to their neighbours again: no
    # freed tensor's place fits the next tensor. Without that cache a run of ragged packs takes up to a fifth less memory.
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
}
"""Of glibc, which reads it when a process starts, and so only in one that is started anew."""
VERBS = {"train", "rl", "quickstart"}


def settle(words: Sequence[str]) -> None:
    """Set what is not set; start the process anew where a verb that trains needs it to have been set from the start."""
    missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    if "OMP_WAIT_POLICY" in os.environ:  # to libgomp the count matters more
        missing.pop("GOMP_SPINCOUNT", None)
    os.environ.update(missing)
    if not VERBS.intersection(words):
        return
    late = {name: value for name, value in start_settings().items() if name not in os.environ}
    if late:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **late})


def start_settings() -> dict[str, str]:
    """What a process that trains must find when it starts: the allocator is loaded then, and reads its settings."""
    match allocator():
        case "luthier":
            return _preloaded(blocks().note, *list(installed())[:1])
        case "jemalloc":
            return _preloaded(next(installed()))
        case "glibc":
            return AT_START
        case "other":
            return {}


def _preloaded(*libraries: str) -> dict[str, str]:
    return {"LD_PRELOAD": os.environ.get("LD_PRELOAD") or ":".join(libraries), "MALLOC_CONF": KEEPING}


def allocator() -> Allocator:
    """Whose memory a process that trains will have: on Linux our own for large blocks where a C compiler is; else jemalloc's where it is
    installed; else glibc's. What the user preloads goes before."""
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return "other"
    if "LD_PRELOAD" not in os.environ:
        return "luthier" if blocks().library else "jemalloc" if any(installed()) else "glibc"
    preloaded = os.environ["LD_PRELOAD"]
    if blocks().library and blocks().note in preloaded:
        return "luthier"
    return "jemalloc" if "jemalloc" in preloaded else "other" if "tcmalloc" in preloaded or "mimalloc" in preloaded else "glibc"


@functools.cache
def blocks() -> Compiled:
    """blocks.c, built now if the cache has none, where it can be preloaded and has the addresses that it wants (`ulimit -v`)."""
    found = compiled(BLOCKS, lost="training takes more memory without one")
    if not found.library:
        return found
    if {" ", ":"}.intersection(found.note):
        return Compiled(library=None, note=f"{found.note} cannot be preloaded: name a folder without blanks and colons in XDG_CACHE_HOME")
    if not found.library.luthier_has_range():
        return Compiled(library=None, note="addresses are limited: ulimit -v and -d unlimited, vm.overcommit_memory 0 or 1")
    return found


def installed() -> Iterator[str]:
    """Where jemalloc is, the first choice first. Only looked at: loaded after the start it would have no room for its threads' data."""
    return (str(folder / JEMALLOC) for folder in library_folders() if (folder / JEMALLOC).exists())


def library_folders() -> Iterator[Path]:
    """Python's own environment's, then the loader's usual ones, those of 32-bit libraries left out."""
    if conda := os.environ.get("CONDA_PREFIX"):
        yield Path(conda, "lib")
    yield Path(sys.prefix, "lib")
    triple = f"{os.uname().machine}-linux-gnu"
    yield from (Path(folder) for folder in ("/usr/local/lib", f"/usr/lib/{triple}", f"/lib/{triple}", "/usr/lib64", "/lib64"))

"""The allocator of large blocks, preloaded into programs: it loses nothing, and keeps no holes between them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.compiled import compilers
from luthier.core.environment import blocks

pytestmark = pytest.mark.skipif(blocks().library is None, reason=f"it cannot be had here: {blocks().note}")

WHAT_IS_KEPT = """
#include <assert.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 40, TURNS = 3000 };
void luthier_release_blocks(void);

static uint64_t drawn(uint64_t *state) {
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return *state;
}

static void write_all(uint64_t *block, size_t bytes, uint64_t word) {
    for (size_t i = 0; i < bytes / 8; i += 64) block[i] = word + i;
}

static void check_all(uint64_t *block, size_t bytes, uint64_t word) {
    for (size_t i = 0; i < bytes / 8; i += 64) if (block[i] != word + i) abort();
}

static void *work(void *seed) {
    uint64_t state = (uint64_t)seed * 7919 + 1, *blocks[BLOCKS] = {0}, words[BLOCKS];
    size_t bytes[BLOCKS];
    for (int turn = 0; turn < TURNS; turn++) {
        if (turn % 500 == 499) luthier_release_blocks();
        int i = drawn(&state) % BLOCKS;
        size_t wanted = 8 + drawn(&state) % (drawn(&state) % 3 ? 4 << 20 : 100000);
        if (blocks[i]) {
            check_all(blocks[i], bytes[i], words[i]);
            if (drawn(&state) % 4) {
                free(blocks[i]), blocks[i] = NULL;
                continue;
            }
            blocks[i] = realloc(blocks[i], wanted);
            check_all(blocks[i], wanted < bytes[i] ? wanted : bytes[i], words[i]);
        } else if (drawn(&state) % 2) {
            blocks[i] = calloc(1, wanted);
            for (size_t j = 0; j < wanted / 8; j += 8) if (blocks[i][j]) abort();
        } else {
            size_t alignment = 64 << drawn(&state) % 8;
            assert(!posix_memalign((void **)&blocks[i], alignment, wanted) && (uintptr_t)blocks[i] % alignment == 0);
        }
        bytes[i] = wanted, words[i] = drawn(&state);
        assert(malloc_usable_size(blocks[i]) >= wanted);
        write_all(blocks[i], bytes[i], words[i]);
    }
    for (int i = 0; i < BLOCKS; i++) free(blocks[i]);
    return NULL;
}

int main(void) {
    volatile size_t most = SIZE_MAX; /* or the compiler would know */
    assert(!malloc(most - 10) && !calloc(most / 4096, 4095) && !malloc(most / 2));
    pthread_t threads[3];
    for (long i = 0; i < 3; i++) pthread_create(threads + i, NULL, work, (void *)i);
    for (int i = 0, status; i < 3; i++) {
        pid_t child = fork();
        if (!child) work((void *)9L), _exit(0);
        waitpid(child, &status, 0);
        if (status) return 1;
    }
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    return 0;
}
"""

MANY_HOLES = """
import ctypes

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [libc.malloc(1 << 16) for _ in range(60_000)]
for block in blocks[::2]:
    libc.free(block)
assert libc.malloc(30_000 << 16)
print(len(open("/proc/self/maps").readlines()))
"""

HOLES = """
import re
import torch

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

before = resident("VmRSS")
tensors = [torch.ones(200_000, dtype=torch.uint8) for _ in range(1500)]
for _ in range(3):
    del tensors[::2]  # 150 MB, in holes of 200 kB
    large = [torch.ones(2_000_000, dtype=torch.uint8) for _ in range(75)]
    del large
    tensors += [torch.ones(200_000, dtype=torch.uint8) for _ in range(750)]
print((resident("VmHWM") - before) / 300e6)
"""


def preloaded(command: list[str], library: str, **settings: str) -> str:
    """What a program says in the end."""
    variables = {**os.environ, "LD_PRELOAD": library, **settings}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=True).stdout


def test_blocks_of_all_sizes_keep_what_was_written_across_threads_reallocations_and_forks(tmp_path: Path) -> None:
    (tmp_path / "kept.c").write_text(WHAT_IS_KEPT)
    subprocess.run(
        [*compilers()[0], "-O1", str(tmp_path / "kept.c"), "-o", str(tmp_path / "kept"), "-lpthread", blocks().note], check=True, timeout=60
    )
    preloaded([str(tmp_path / "kept")], blocks().note)


def test_a_block_made_of_thirty_thousand_holes_leaves_mappings_for_others() -> None:
    """A process may have 65,530."""
    assert int(preloaded([sys.executable, "-c", MANY_HOLES], blocks().note)) < 30_000


def test_a_process_holds_no_more_than_the_most_that_was_in_use_at_once() -> None:
    """300 MB here, the least that any allocator could hold is 1.5 × as much where none can make a block of holes."""
    kept = {"MALLOC_MMAP_THRESHOLD_": "34359738368", "MALLOC_TRIM_THRESHOLD_": "34359738368"}  # as in a process that trains
    own, glibc = (float(preloaded([sys.executable, "-c", HOLES], library, **kept)) for library in (blocks().note, ""))
    assert own < 1.04 < 1.4 < glibc

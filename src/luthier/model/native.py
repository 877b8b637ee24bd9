"""The functions of pointwise.c, which has slots.c in it, loaded into torch's process."""

import functools
from pathlib import Path

import torch  # noqa: F401  brings the OpenMP runtime that the library takes its symbols from

from luthier.core.compiled import Compiled, Source, compiled

FILE = Path(__file__).with_name("pointwise.c")
SOURCE = Source(
    file=FILE,
    included=(FILE.with_name("slots.c"),),
    compile=("-O3", "-march=native", "-fopenmp", "-fPIC", "-std=c11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    # Without -fopenmp, so that no OpenMP runtime is linked: torch has loaded one, its symbols global. A second would have its own threads.
    link=("-shared", "-lm"),
)


@functools.cache
def native() -> Compiled:
    """Built now if the cache has none; LUTHIER_NATIVE=0 switches them off."""
    return compiled(SOURCE, lost="training on a CPU is faster with one")

"""What a process takes besides its tensors: code, caches of libraries, and what the allocator cannot use. Measured, not derived.

The CPU's numbers: 2026-11-29, Xeon with AMX, 2 threads, Python 3.11, torch 2.13.0+cpu, transformers 5.23, blocks.c over jemalloc 5.3,
by the kernel's map of the process at its peak (docs/notes/blocks.md).
"""

from collections.abc import Iterator

from luthier.core.environment import PRODUCTS_KEPT, Allocator
from luthier.plan.lines import Line
from luthier.plan.setup import Engine, Setup
from luthier.plan.shape import ModelShape
from luthier.runs.workload import Extent, Survey

PROCESS_BYTES = {"cpu": 513_000_000, "cuda": 550_000_000}
"""Resident with the model loaded, less the model (`luthier train` of the quickstart). A GPU's context and kernels of libraries take 0.4
to 0.6 GB (CUDA 12)."""
LIBRARY_BYTES: dict[Engine, int] = {"fused": 23_000_000, "packed": 20_000_000, "plain": 30_000_000}
"""After that, on a CPU: pages of code that is loaded late, torch's optimizers and autograd, threads, small blocks and their holes."""
CUDA_LIBRARY_BYTES = 70_000_000
"""cuBLAS's workspaces (PyTorch: 8 to 32 MiB each) and kernels that are loaded late; not measured."""
PRODUCT_BYTES = 700_000
"""Of a matrix product of one shape, in the two caches that torch's CPU products have, oneDNN's and ideep's: a block of 258 kB for code in
each, and small ones."""
HOLES_SHARE: dict[Allocator, float] = {"luthier": 0.0, "jemalloc": 0.2, "glibc": 0.3, "other": 0.3}
"""Of the live bytes on a CPU: holes between tensors. Our own has none; of the others' nobody knows how many, and this leans upward."""
CUDA_SHARE = 0.05
"""The same on a GPU: torch's allocator keeps blocks of 2 MiB and more."""
MKL_BYTES = 25_000_000
"""Instead of all these where it multiplies float32, for it compiles nothing."""
MKL_PANEL = 19_968, 384
"""Columns and rows of the right matrix that MKL copies for a product of 110 rows and more, beside a MiB of numbers; every product's copy is
handed back after it (`MKL_DISABLE_FAST_MM`). By the blocks that it asks for in products with heads of 5,000 to 60,000 words."""
MKL_OTHERS_BYTES = 8_000_000
"""Of MKL_BYTES, such copies in other products."""
ATTENTION_BYTES = 2_000
"""Of torch's attention in bfloat16 for each token of each length: it compiles products of its own for what is left over of its blocks."""
SHAPES = {"fused": (60, 50, 19), "packed": (14, 13, 8), "plain": (4, 28, 13)}
"""Products of different shapes, counted with ONEDNN_VERBOSE: in trying the engine, of each kind of micro batch, and in validation."""
SHAPES_RAGGED = 30
"""Instead, of each kind of pack of rows of many lengths: transformers' layers multiply each row's scores by themselves."""
SHAPES_FLOAT32 = 9
"""More of each kind of padded micro batch in float32, where attention's products are oneDNN's, too."""


def process(setup: Setup) -> Line:
    """The process once the model is loaded, without the model."""
    size = PROCESS_BYTES[setup.device]
    return Line(name="process", kind="context", bytes=size, formula="Python, torch, transformers" if setup.device == "cpu" else "CUDA")


def libraries(setup: Setup, survey: Survey) -> Line:
    """What libraries take once training runs."""
    if setup.device == "cuda":
        size, formula = CUDA_LIBRARY_BYTES, f"{CUDA_LIBRARY_BYTES / 1e6:.0f} MB"
    elif _by_mkl(setup):
        size, formula = MKL_BYTES, f"{MKL_BYTES / 1e6:.0f} MB with MKL"
    else:
        fixed, shapes = LIBRARY_BYTES[setup.engine], product_shapes(setup, survey)
        size, formula = fixed + shapes * PRODUCT_BYTES, f"{fixed / 1e6:.0f} MB + {shapes} shapes of products × {PRODUCT_BYTES / 1e6:.1f} MB"
        if setup.engine == "plain" and setup.dtype == "bfloat16":
            lengths = sum({extent.longest for extent in _extents(survey)})
            size += lengths * ATTENTION_BYTES
            formula += f" + attention of {lengths:,} tokens × {ATTENTION_BYTES / 1e3:.0f} kB"
    return Line(name="libraries", kind="context", bytes=size, formula=formula)


def workspace(setup: Setup, shape: ModelShape) -> Line:
    """What the product with the head wants besides."""
    columns, rows = min(shape.vocabulary, MKL_PANEL[0]), min(shape.hidden, MKL_PANEL[1])
    size = max(0, 4 * (columns * rows + (1 << 20)) - MKL_OTHERS_BYTES) if _by_mkl(setup) else 0
    return Line(name="MKL's workspace", kind="transient", bytes=size, formula=f"{columns:,} × {rows:,} of the head × 4 B - 4 MB")


def _by_mkl(setup: Setup) -> bool:
    return setup.device == "cpu" and setup.dtype == "float32" and setup.float32_by == "MKL"


def _extents(survey: Survey) -> Iterator[Extent]:
    yield from (extent for step in survey.steps for extent in step)
    yield from survey.validation


def product_shapes(setup: Setup, survey: Survey) -> int:
    """Shapes of matrix products that the caches hold: each new size of a micro batch brings its own."""
    tried, trained, validated = SHAPES[setup.engine]
    if setup.engine == "plain" and setup.dtype == "float32":
        trained += SHAPES_FLOAT32
    seen = {(extent.places, extent.needed, extent.targets) for step in survey.steps for extent in step}
    unseen = {(extent.places, extent.needed, extent.targets) for extent in survey.validation} - seen
    if setup.engine == "packed" and len(seen) > 1:
        trained = SHAPES_RAGGED
    return min(PRODUCTS_KEPT, tried + trained * len(seen) + validated * len(unseen))


def holes(setup: Setup, live: int) -> Line:
    """Memory that the allocator holds and cannot give."""
    share = CUDA_SHARE if setup.device == "cuda" else HOLES_SHARE[setup.allocator]
    told = "" if setup.device == "cuda" else f"{setup.allocator}: "
    return Line(name="allocator", kind="context", bytes=round(share * live), formula=f"{told}{share:.0%} of {live / 1e9:.3g} GB")

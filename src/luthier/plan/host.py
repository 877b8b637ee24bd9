"""What a process takes besides its tensors: code, caches of libraries, and what the allocator cannot use. Measured and fitted, not derived.

The CPU's numbers: 2026-11-20, EPYC (Zen 5), Python 3.11, torch 2.13.0+cpu, transformers 5.23, glibc 2.36,
`bench/plan_accuracy.py --memory`.
"""

from luthier.core.environment import PRODUCTS_KEPT
from luthier.plan.lines import Line
from luthier.plan.setup import Engine, Setup
from luthier.runs.workload import Survey

PROCESS_BYTES = {"cpu": 433_000_000, "cuda": 550_000_000}
"""Resident with the model loaded, less the model. A GPU's context and the code of its libraries' kernels take 0.4 to 0.6 GB (CUDA 12)."""
LIBRARY_BYTES: dict[Engine, int] = {"fused": 55_000_000, "packed": 170_000_000, "plain": 150_000_000}
"""After that, on a CPU: torch's optimizers and autograd, threads, and what oneDNN keeps to rearrange matrices. Fitted to the first 25 cells
of the bench, whose process took so much more than its tensors; the other cells were not looked at (docs/plan-accuracy.md)."""
CUDA_LIBRARY_BYTES = 70_000_000
"""cuBLAS's workspaces (PyTorch: 8 to 32 MiB each) and kernels that are loaded late; not measured."""
PRODUCT_BYTES = 570_000
"""Of a matrix product of one shape, in the two caches that torch's CPU products have: oneDNN's 290 kB, ideep's 280 kB."""
ALLOCATOR_SHARE = {"cpu": 0.08, "cuda": 0.05}
"""Of the live bytes: holes between tensors. glibc keeps what is freed (`luthier.train.host`); torch's GPU allocator keeps blocks of 2 MiB
and more."""
SHAPES = {"fused": (60, 50, 19), "packed": (38, 14, 8), "plain": (4, 28, 13)}
"""Products of different shapes, counted with ONEDNN_VERBOSE: in trying the engine, of each kind of micro batch, and in validation."""
SHAPES_FLOAT32 = 9
"""More of each kind of padded micro batch in float32, where attention's products are oneDNN's, too."""


def process(setup: Setup) -> Line:
    """The process once the model is loaded, without the model."""
    size = PROCESS_BYTES[setup.device]
    return Line(name="process", kind="context", bytes=size, formula="Python, torch, transformers" if setup.device == "cpu" else "CUDA")


def libraries(setup: Setup, survey: Survey) -> Line:
    """What libraries take once training runs."""
    size = LIBRARY_BYTES[setup.engine] if setup.device == "cpu" else CUDA_LIBRARY_BYTES
    formula = f"{size / 1e6:.0f} MB"
    if setup.device == "cpu":
        shapes = product_shapes(setup, survey)
        size, formula = size + shapes * PRODUCT_BYTES, f"{formula} + {shapes} shapes of products × {PRODUCT_BYTES / 1e6:.2f} MB"
    return Line(name="libraries", kind="context", bytes=size, formula=formula)


def product_shapes(setup: Setup, survey: Survey) -> int:
    """Shapes of matrix products that the caches hold: each new size of a micro batch brings its own."""
    tried, trained, validated = SHAPES[setup.engine]
    if setup.engine == "plain" and setup.dtype == "float32":
        trained += SHAPES_FLOAT32
    seen = {(extent.places, extent.needed, extent.targets) for step in survey.steps for extent in step}
    unseen = {(extent.places, extent.needed, extent.targets) for extent in survey.validation} - seen
    return min(PRODUCTS_KEPT, tried + trained * len(seen) + validated * len(unseen))


def allocator(setup: Setup, live: int) -> Line:
    """Memory that the allocator holds and cannot give."""
    share = ALLOCATOR_SHARE[setup.device]
    return Line(name="allocator", kind="context", bytes=round(share * live), formula=f"{share:.0%} of {live / 1e9:.3g} GB")

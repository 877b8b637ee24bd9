"""Other libraries' code, changed for a while; each with its versions, and a test that fails once it is no longer needed."""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import safe_open
from transformers import modeling_utils


def load_bitsandbytes() -> None:
    """Import bitsandbytes, where it is installed, before PEFT does: without the code that it would fetch from the hub, and in silence.

    bitsandbytes 0.50: on a processor with AVX512-BF16 its import asks the package `kernels` for a compiled product of the hub's
    `kernels-community`, which would be fetched and run, and logs that there is no such package. It can do without.
    """
    if importlib.util.find_spec("bitsandbytes") is None or "bitsandbytes" in sys.modules:
        return
    logger, kernels = logging.getLogger("bitsandbytes.backends.cpu.ops"), sys.modules.get("kernels")
    logger.disabled, sys.modules["kernels"] = True, None  # type: ignore[assignment]  # what Python itself puts there to say "not found"
    try:
        importlib.import_module("bitsandbytes")
    finally:
        logger.disabled = False
        if kernels is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = kernels


@contextmanager
def weights_read_not_mapped() -> Iterator[None]:
    """While it is open, transformers reads each tensor at its turn; 5.23 maps all files, and holds their pages until the last is through.

    Weights that are cast, quantised or sent to a GPU would lie in the host's memory twice: once as the file's pages.
    """
    own = modeling_utils.safe_open

    def read(file: str, *, framework: str, device: str, backend: str) -> Any:
        return safe_open(file, framework=framework, device=device, backend="pread" if backend == "mmap" else backend)

    modeling_utils.safe_open = read
    try:
        yield
    finally:
        modeling_utils.safe_open = own

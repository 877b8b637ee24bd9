"""Other libraries' code, changed for a while; each with its versions, and a test that fails once it is no longer needed."""

import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, modeling_utils


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


@contextmanager
def left_empty(elsewhere: Callable[[PreTrainedModel], Iterable[str]]) -> Iterator[None]:
    """While it is open, transformers leaves what `elsewhere` names of an empty model on the meta device, and reads nothing for it.

    5.23 makes room for every weight that it does not find, and sends to the meta device only what it has read. So these modules are taken
    out while it loads.
    """
    own = {name: PreTrainedModel.__dict__[name] for name in ("_load_pretrained_model", "_finalize_model_loading")}
    taken: dict[str, nn.Module] = {}
    before: dict[str, Any] = {}

    def load(model: PreTrainedModel, *args: Any, **options: Any) -> Any:
        taken.update({name: model.get_submodule(name) for name in elsewhere(model)})
        before.update(all_tied_weights_keys=model.all_tied_weights_keys, ignored=model._keys_to_ignore_on_load_unexpected)
        for name in taken:
            model.set_submodule(name, nn.Identity())
        if isinstance(model.get_output_embeddings(), nn.Identity):  # nothing can be tied to it now
            model.all_tied_weights_keys = {}
        model._keys_to_ignore_on_load_unexpected = {*(before["ignored"] or ()), *(f"^{re.escape(name)}[.]" for name in taken)}
        return own["_load_pretrained_model"].__func__(model, *args, **options)

    def finish(model: PreTrainedModel, *args: Any, **options: Any) -> Any:
        found = own["_finalize_model_loading"].__func__(model, *args, **options)
        for name, module in taken.items():
            model.set_submodule(name, module)
        model.all_tied_weights_keys = before["all_tied_weights_keys"]
        model._keys_to_ignore_on_load_unexpected = before["ignored"]
        model.tie_weights(recompute_mapping=False)
        return found

    PreTrainedModel._load_pretrained_model, PreTrainedModel._finalize_model_loading = staticmethod(load), staticmethod(finish)
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(PreTrainedModel, name, function)

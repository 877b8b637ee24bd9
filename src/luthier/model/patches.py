"""Other libraries' code where it must do otherwise; each with its versions, and a test that fails once it is not needed."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel


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

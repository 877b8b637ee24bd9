"""One base for several runs of a process: its weights are loaded once, and every run gets a model of its own around them.

What adapters, fused functions and hooks change of a model are its modules, and those are copied; weights are frozen, and are not.
"""

import copy
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from transformers import PreTrainedModel

from luthier.plan.resident import afterwards_gone, stays


@dataclass(slots=True)
class _Kept:
    """The base that was loaded last, by what it was loaded from."""

    bases: dict[Hashable, PreTrainedModel] = field(default_factory=dict)


_kept: ContextVar[_Kept | None] = ContextVar("kept base", default=None)


@contextmanager
def keeping_a_base() -> Iterator[None]:
    """Within, a base that is asked for again, after no other, is not loaded again."""
    token = _kept.set(_Kept())
    try:
        with afterwards_gone():
            yield
    finally:
        _kept.reset(token)


def base_for(key: Hashable, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The base that `load` gives and `key` names, for one run, which must leave its weights as they are."""
    kept = _kept.get()
    if kept is None:
        return load()
    if key not in kept.bases:
        kept.bases.clear()  # before the next is loaded: there may be no room for both
        stays(0)
        kept.bases[key] = load()
        stays(sum(tensor.numel() * tensor.element_size() for tensor in _tensors(kept.bases[key]).values()))
    return around_the_same_weights(kept.bases[key])


def around_the_same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model's modules around the very tensors that it has: nothing done to the copy's modules is seen in the original."""
    return copy.deepcopy(model, memo=dict(_tensors(model)))


def _tensors(model: PreTrainedModel) -> dict[int, Any]:
    """Parameters and buffers by identity, as `copy.deepcopy` remembers what it need not copy."""
    return {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}

"""How a model's rows are written: side by side by functions of our own, by the model's own layers, or one by one. Tried, not trusted.

Families whose layers are known go by their name; any other is first asked for the next tokens of three short rows. What gives other logits
than the model without a cache is not used.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.errors import ModelError
from luthier.model.abreast import Abreast, SlotLayer, all_inside, slot_layers
from luthier.model.attention import Unfusable
from luthier.model.fuse import TOLERANCE
from luthier.model.head import PLAIN
from luthier.model.onebyone import OneByOne
from luthier.model.shard import class_of, evaluating
from luthier.model.slots import Chunk, Slots

Passes = Abreast | OneByOne
LENGTHS = (24, 17, 9)
"""Tokens of the rows that are tried."""
BY_LENGTH = {"dynamic", "longrope"}
"""Rotary angles that follow from the longest row seen, which transformers keeps in the model: one row at a time, from first to last."""
_found: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()
"""What was found of a model when it was first tried, way by way; empty where it is right."""


def passes_of(base: PreTrainedModel, names: Sequence[str], speaker: int, *, most_slots: int, most_tokens: int) -> Passes:
    """The fastest way that is right for a model with PEFT's adapters of these names, as they are now, of which it speaks with `speaker`.

    Raises ModelError where none is.
    """
    known = _found.setdefault(base, {})

    def wrong(way: str, passes: Passes, against: Passes | None) -> str:
        if way not in known:
            with evaluating(base):
                known[way] = _difference(passes, against, base, speaker)
        return known[way]

    try:
        own = Abreast(base=base, slots=Slots(base.config, most_slots=3, most_tokens=96), layers={}, mixes=not names)
        note = _turned_by_length(base) or ("" if _is_known(base) else wrong("layers", own, None))
    except Unfusable as reason:
        note = str(reason)
    if note:
        if alone := wrong("one by one", OneByOne(base, most_slots=3, most_tokens=96), None):
            what = f"no way to write with {type(base).__name__} gives what the model gives: {note}; one by one: {alone}"
            raise ModelError(what, change="serve it by vLLM")
        return OneByOne(base, most_slots=1 if _turned_by_length(base) else most_slots, most_tokens=most_tokens)
    slots = Slots(base.config, most_slots=most_slots, most_tokens=most_tokens)
    try:
        layers = slot_layers(base, names)
    except Unfusable:
        layers = {}
    tried = Abreast(base=base, slots=Slots(base.config, most_slots=3, most_tokens=96), layers=layers, mixes=False)
    if layers and wrong("functions", tried, own):
        layers = {}
    return Abreast(base=base, slots=slots, layers=layers, mixes=_mixes(base, names, layers))


def passes_with(passes: Passes, names: Sequence[str]) -> Passes:
    """The same way over the same slots for a model that now has other adapters, which are no reason to try it again."""
    if isinstance(passes, OneByOne):
        return passes
    layers: dict[nn.Module, SlotLayer] = {}
    if not _found[passes.base].get("functions", "untried"):
        with suppress(Unfusable):
            layers = slot_layers(passes.base, names)
    return replace(passes, layers=layers, mixes=_mixes(passes.base, names, layers))


def _mixes(base: PreTrainedModel, names: Sequence[str], layers: Mapping[nn.Module, SlotLayer]) -> bool:
    return not names or (bool(layers) and all_inside(base, layers))


def _is_known(base: PreTrainedModel) -> bool:
    return class_of(base).__module__.startswith("transformers.models.") and base.config.model_type in PLAIN


def _turned_by_length(base: PreTrainedModel) -> str:
    rope: dict[str, Any] = base.config.get_text_config().to_dict().get("rope_parameters") or {}
    kinds = {each.get("rope_type") for each in (rope, *(some for some in rope.values() if isinstance(some, dict)))}
    return f"rotary angles of kind {', '.join(found)}" if (found := sorted(BY_LENGTH & kinds)) else ""


def _difference(passes: Passes, against: Passes | None, base: PreTrainedModel, speaker: int) -> str:
    """What is wrong with the logits after three rows' last tokens but one, and their last; empty where nothing is."""
    random, vocabulary = np.random.default_rng(0), base.config.get_text_config().vocab_size
    rows = [random.integers(0, vocabulary, length).tolist() for length in LENGTHS]
    try:
        found = _logits(passes, rows, speaker)
        expected = _logits(against, rows, speaker) if against else _plain(base, rows)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError) as error:  # of a foreign architecture
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    apart_23 = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).view(2, len(rows))
    apart = float(apart_23.median(dim=1).values.max())  # in bfloat16 a mixture may send one token to other experts
    return "" if apart < TOLERANCE[base.dtype] else f"its logits are {apart:.1%} off"


def _logits(passes: Passes, rows: Sequence[Sequence[int]], speaker: int) -> Tensor:
    """Read to their last token but one, alone where rows cannot be padded; then written side by side [6, V]."""
    passes.slots.reserve(len(rows), max(LENGTHS), 0)
    given = []
    for start, some in enumerate([[row] for row in rows] if passes.slots.has_states else [rows]):
        chunk = Chunk(start=start, ids=[row[:-1] for row in some], done=[0] * len(some), speakers=[speaker] * len(some))
        given.append(passes.logits(chunk)[:, -1])
    last = Chunk(start=0, ids=[row[-1:] for row in rows], done=[len(row) - 1 for row in rows], speakers=[speaker] * len(rows))
    return torch.cat([*given, passes.logits(last)[:, -1]]).float()


def _plain(base: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """The same without a cache."""
    logits = [base(input_ids=torch.tensor([row], device=base.device), use_cache=False).logits[0, -2:].float() for row in rows]
    return torch.cat([torch.stack([each[0] for each in logits]), torch.stack([each[1] for each in logits])])

"""The adapter added to its base's weights: a folder that plain transformers loads.

Base and adapter are summed in float32, matrix by matrix, and each sum is rounded once, to the type that the run computed in (traps 15, 23).
On the host this takes the base in that type and one matrix, or one layer's stack of experts, in float32 twice.
"""

import math
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from luthier.core import files
from luthier.core.errors import ModelError
from luthier.core.progress import Progress
from luthier.data.repository import open_repository, read_json
from luthier.data.store import TokenRow
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.adapt import PROVENANCE, load_adapter
from luthier.model.arrive import Bits, leave_of_few_bits
from luthier.model.load import load_model, no_progress_bars, to_device
from luthier.model.shard import evaluating
from luthier.recipe.schema import Model
from luthier.train.batch import collate
from luthier.train.card import Known, Origin, card
from luthier.train.objective import logits_at_targets
from luthier.train.precision import Precision

Over = Literal["trained", "plain"]
"""The base that an adapter is merged into: what few bits left of its weights, over which it was trained, or the weights as they are."""
HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """How a folder was made: copied, where the whole model was trained; else over which base, and nats of KL for each that was tried."""

    over: Over | Literal["copied"]
    kl: dict[Over, float] = field(default_factory=dict)
    """KL(live adapter ‖ merged model) per supervised token; measured where there is a choice."""

    @property
    def told(self) -> tuple[str, ...]:
        """In words, for the card."""
        if not self.kl:
            return ()
        bases = {"trained": "the weights in few bits, as it was trained", "plain": "the base's own weights"}
        figures = "; ".join(f"{bases[over]} {value:.3g}" for over, value in self.kl.items())
        return (f"The adapter was merged into {bases[self.over]}. KL from the live adapter in nats per token, over: {figures}.",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What is handed over: a run's final weights, what they came from, and rows of its own data to measure on."""

    origin: Origin
    adapter: Path
    """The folder of the adapter, or of the whole model."""
    tokenizer: ChatTokenizer
    precision: Precision
    """What the run computed in, and where KL is measured."""
    rows: Sequence[TokenRow]

    @property
    def model(self) -> Model:
        """The base, as it was trained over."""
        return self.origin.recipe.model


def write(handed: Handed, folder: Path, known: Known, progress: Progress) -> Merged:
    """Fill an empty folder with the merged model, its tokenizer, stop ids, card and provenance.json."""
    if handed.origin.recipe.lora == "none":
        made = Merged(over="copied")
        shutil.copytree(handed.adapter, folder, dirs_exist_ok=True)
    else:
        made = _write_weights(handed, folder, progress)
    handed.tokenizer.save(folder)
    _name_stops(folder, handed.tokenizer)
    licence = open_repository(handed.model).licence()
    told = Known(data=known.data, results=known.results, licence=licence, notes=made.told)
    files.write(folder / "README.md", card(handed.origin, "model" if made.over == "copied" else "merged", told))
    provenance: dict[str, Any] = {**read_json(handed.adapter / PROVENANCE), "merged": {"over": made.over, "kl": made.kl}}
    del provenance["files"]
    (folder / PROVENANCE).unlink(missing_ok=True)
    files.write_json(folder / PROVENANCE, provenance | {"files": files.digests(folder)})
    return made


def merged(model: Model, adapter: Path, dtype: torch.dtype, over: Over) -> PreTrainedModel:
    """The base with the adapter of a folder in its weights, on the host; raises ModelError where a sum is outside the type's range."""
    base = load_model(model.model_copy(update={"quantization": "none"}), dtype, HOST)
    if over == "trained" and model.quantization != "none":
        leave_of_few_bits(base, Bits(kind=model.quantization, double_quant=model.double_quant, dtype=dtype))
    adapted = load_adapter(base, adapter)
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            _merge(name, layer)
    plain: PreTrainedModel = adapted.unload()
    return plain


def divergence(live: nn.Module, other: nn.Module, rows: Sequence[TokenRow], precision: Precision) -> float:
    """KL(live ‖ other) over the vocabulary, in nats: the mean over the rows' supervised tokens."""
    total, num_targets = 0.0, 0
    with evaluating(live), evaluating(other), precision.autocast():
        for number, row in enumerate(rows):
            batch = collate([row], [number], precision.device)
            told, heard = (logits_at_targets(model, batch).float().log_softmax(-1) for model in (live, other))
            total += F.kl_div(heard, told, reduction="sum", log_target=True).item()  # of one row: no loop that has to be fast
            num_targets += batch.num_targets
    return max(0.0, total / num_targets)  # rounding can leave it a little below


def _write_weights(handed: Handed, folder: Path, progress: Progress) -> Merged:
    """Weights, config.json and the base's generation settings of the model that is merged over the nearer base (trap 21)."""
    kl = _distances(handed, progress)
    over: Over = min(kl, key=lambda base: kl[base]) if kl else "plain"
    model = merged(handed.model, handed.adapter, handed.precision.dtype, over)
    generation = model.generation_config.to_diff_dict() if model.generation_config else {}
    model.generation_config = GenerationConfig()  # transformers would refuse to save settings that it bears to load
    with no_progress_bars(), redirect_stdout(sys.stderr):  # stdout is `--json`'s, and deepspeed, where it is installed, writes there
        model.save_pretrained(str(folder))
    files.write_json(folder / "generation_config.json", generation)
    return Merged(over=over, kl=kl)


def _distances(handed: Handed, progress: Progress) -> dict[Over, float]:
    """KL of the model merged over each base that there is, from the live adapter on the run's own rows; nothing where there is one base."""
    model, precision, found = handed.model, handed.precision, dict[Over, float]()
    if model.quantization == "none":
        return found
    live = load_adapter(load_model(model, precision.dtype, precision.device), handed.adapter)
    bases: tuple[Over, ...] = ("trained", "plain")
    for over in bases:
        other = to_device(merged(model, handed.adapter, precision.dtype, over), precision.device)
        found[over] = divergence(live, other, handed.rows, precision)
        del other  # before the next is there
        if not math.isfinite(found[over]):
            raise ModelError(f"KL from the live adapter, merged over the {over} base, is {found[over]}", where=str(handed.adapter))
        progress.say(f"merged over the {over} base: KL {found[over]:.3g} nats a token from the live adapter")
    return found


def _merge(name: str, layer: LoraLayer) -> None:
    """Add one layer's adapter to its weights by PEFT's own rule (DoRA's and rsLoRA's, too), which adds in the type that they have."""
    own = [layer.get_param()] if isinstance(layer, ParamWrapper) else list(layer.get_base_layer().parameters(recurse=False))
    narrow = [parameter.data for parameter in own]
    for parameter in own:
        parameter.data = parameter.data.float()
    with torch.no_grad():
        layer.merge()
    for parameter, kept in zip(own, narrow, strict=True):
        parameter.data = kept.copy_(parameter.data)  # into its own memory: what is freed and taken anew all over a model becomes holes
        if not parameter.isfinite().all():
            change = "set model.dtype: bfloat16, or serve the adapter over its base"
            raise ModelError(f"merged, {name} is outside the range of {kept.dtype}".replace("torch.", ""), change=change)


def _name_stops(folder: Path, tokenizer: ChatTokenizer) -> None:
    """Let generation end where the run's did, on the template's end-of-turn too (trap 14), and leave the rest as the base has it."""
    place = folder / "generation_config.json"
    kept = read_json(place) if place.exists() else {}
    files.write_json(place, {**kept, "eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_id})

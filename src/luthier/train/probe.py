"""A few seconds of real training on slices of a model: the rate that its steps will reach on this processor.

Two slices with the model's own widths, vocabulary and data type, and random weights, take the same step in turn: one of its first and its
last layer, one with some of those between. What the second takes more is those layers' time, and the rest of the layers take as much for
their operations:

    seconds(model) = seconds(small) + (operations(model) - operations(small)) · Δseconds / Δoperations

A model of few layers is timed whole. The small slice is the large one with layers left out for a moment.
"""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import luthier.model  # noqa: F401  # isort: skip  # before PEFT: it imports bitsandbytes in silence, and without code of the hub
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from luthier.core.errors import LuthierError
from luthier.core.hardware import free_memory_bytes
from luthier.data.order import Indices
from luthier.data.store import HeldRows, Rows, TokenRow
from luthier.data.survey import extents
from luthier.model.adapt import add_lora, base_of
from luthier.model.fuse import Fusion, fuse
from luthier.model.load import DTYPES
from luthier.model.place import trained_of
from luthier.plan.rate import CORE_FLOPS
from luthier.plan.setup import Engine, Setup
from luthier.plan.shape import ModelShape, shape_of
from luthier.plan.speed import operations
from luthier.recipe.schema import Training
from luthier.runs.rates import Circumstances, Measured
from luthier.runs.workload import Extent
from luthier.train.batch import MicroBatch, micro_batches
from luthier.train.host import prepare_host, release_freed_memory
from luthier.train.optim import make_optimizer
from luthier.train.precision import Precision
from luthier.train.slices import kinds_of, made_up, sliced, text_config
from luthier.train.step import train_step

SECONDS = 3.0
"""Of measuring, after a step of each slice to warm up. With a 7B model one step of each takes as long, and has to do."""
STEPS = 4
"""That the larger slice shall take in SECONDS, by a guess at its rate: so many of the step's rows are taken."""
FEWEST_TOKENS = 256
"""Of the rows that are taken for an adapter: products of fewer are slower than a run's."""
MEMORY_SHARE = 0.5
"""Of the free memory, what the slice's weights, gradients and optimizer state may take."""
CPU = torch.device("cpu")


class CannotProbe(LuthierError):
    """Slices of this model cannot be timed here; its time is then assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is to be timed: the model of a config.json, set up so, on the rows of one step."""

    config: Mapping[str, Any]
    setup: Setup
    rows: Rows
    taken: Indices
    """Of the rows: one step's."""
    circumstances: Circumstances
    """Of the run, from `luthier.plan.rate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a model with some of its layers took for its steps."""

    operations: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """The large slice, ready for steps."""

    model: PreTrainedModel | PeftModel
    optimizer: torch.optim.Optimizer
    precision: Precision
    engine: Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """One step of each slice, on these rows."""

    taken: Indices
    seconds: tuple[float, ...]


def probe(trial: Trial, seconds: float = SECONDS) -> Measured:
    """The rate that steps of this model will reach here; raises CannotProbe for what slices would say nothing about.

    It is that of the engine that was found to work, which may be another than the setup's.
    """
    if trial.setup.device != "cpu" or trial.setup.quantization != "none":
        raise CannotProbe("only a processor and unquantised weights are probed", where="model.quantization")
    began = time.perf_counter()
    prepare_host(CPU)
    whole = text_config(trial.config)
    slices = slices_of(whole, trial)
    chosen = _some_rows(_shape(sliced(whole, slices[-1]), trial), trial)
    with torch.random.fork_rng(devices=[]):
        ready = _ready(sliced(whole, slices[-1]), trial)
        rounds = _rounds(ready, slices, chosen, trial, seconds)
    setup, engine = replace(trial.setup, engine=ready.engine), ready.engine
    del ready
    gc.collect()
    release_freed_memory()
    extent = tuple(part for each in rounds for part in extents(trial.rows, each.taken, setup.micro_batch))
    parts = [
        Part(operations=_operations(sliced(whole, layers), trial, setup, extent), seconds=sum(each.seconds[index] for each in rounds))
        for index, layers in enumerate(slices)
    ]
    return Measured(
        source="probe",
        name=str(trial.config["model_type"]),
        circumstances=replace(trial.circumstances, engine=engine),
        flops=rate_of(parts, _operations(whole, trial, setup, extent)),
        seconds=time.perf_counter() - began,
    )


def random_rows(extent: Extent, vocabulary: int) -> HeldRows:
    """Rows of random tokens as they are stated only, for a plan without data: so many, so long on average, supervised at their end."""
    random = np.random.default_rng(0)
    length = max(2, round(extent.tokens / extent.rows))
    supervised = np.arange(length) >= length - max(1, round(extent.supervised / extent.rows))
    rows = [TokenRow(ids=random.integers(0, vocabulary, length, np.int32), supervised=supervised) for _ in range(extent.rows)]
    return HeldRows(rows, np.arange(len(rows)))


def slices_of(whole: PreTrainedConfig, trial: Trial) -> list[tuple[int, ...]]:
    """The layers of the small and the large slice, or all layers of a model of few.

    Between first and last there shall be layers of every kind, and so many that they do as much work as the rest: the head of Qwen3-0.6B
    does as much for 40 % of the tokens as four of its layers, so 6. One has to do where that takes too long or too much memory.
    """
    shape, kinds = _shape(whole, trial), kinds_of(whole)
    last = shape.num_layers - 1
    body, head = shape.multiplied_parameters / shape.num_layers, 0.4 * shape.hidden * shape.vocabulary
    wanted = round(2 + head / body)
    if 4 * FEWEST_TOKENS * (body * (2 + wanted) + head) > SECONDS * _guess(trial):
        wanted = 1
    if last < 2 or wanted >= last - 1:
        found = [tuple(range(shape.num_layers))]
    else:
        between = set(np.linspace(1, last - 1, wanted).round().astype(int).tolist())
        between |= {kinds.index(kind) for kind in set(kinds) - {kinds[layer] for layer in (0, *between, last)}}
        found = [(0, last), (0, *sorted(between), last)]
    numbers = _shape(sliced(whole, found[-1]), trial).parameters
    if numbers * (16 if trial.setup.lora == "none" else DTYPES[trial.setup.dtype].itemsize) > MEMORY_SHARE * free_memory_bytes():
        raise CannotProbe(f"{len(found[-1])} layers of this model need more than {MEMORY_SHARE:.0%} of the free memory")
    return found


def rate_of(parts: list[Part], total: float) -> float:
    """Operations a second of a model with so many in all, by its slices' times, or by that of the whole model."""
    small, large = parts[0], parts[-1]
    if len(parts) == 1:
        return small.operations / small.seconds
    more = max(large.seconds - small.seconds, 0.1 * large.seconds)  # layers take time, whatever a disturbed clock says
    return total / (small.seconds + (total - small.operations) * more / (large.operations - small.operations))


def _shape(config: PreTrainedConfig, trial: Trial) -> ModelShape:
    return shape_of({**config.to_dict(), "model_type": trial.config["model_type"]})


def _operations(config: PreTrainedConfig, trial: Trial, setup: Setup, parts: tuple[Extent, ...]) -> float:
    shape = _shape(config, trial)
    return sum(operations(shape, setup, part) for part in parts)


def _guess(trial: Trial) -> float:
    """Operations a second, before anything is measured."""
    return CORE_FLOPS["bfloat16" if trial.setup.dtype == "bfloat16" else "float32"].mid * torch.get_num_threads()


def _some_rows(large: ModelShape, trial: Trial) -> Indices:
    """Rows of the step, as many as the large slice can take in time, and at least FEWEST_TOKENS.

    Where all weights are trained, at least one whole micro batch: each writes a gradient of them all, whatever its size.
    """
    size = trial.setup.micro_batch
    fewest = size.tokens if trial.setup.lora == "none" else FEWEST_TOKENS
    tokens = np.cumsum(trial.rows.lengths[trial.taken])
    parts = extents(trial.rows, trial.taken, size)
    per_token = sum(operations(large, trial.setup, part) for part in parts) / int(tokens[-1])
    return trial.taken[: 1 + int(np.searchsorted(tokens, max(fewest, SECONDS / STEPS * _guess(trial) / per_token)))]


def _rounds(ready: _Ready, slices: list[tuple[int, ...]], chosen: Indices, trial: Trial, seconds: float) -> list[_Round]:
    """Steps of the slices in turn, until so many seconds have passed. Each leaves out another row: a run's steps are never of one shape,
    and the libraries set up every new one. The first round, in which memory is new, counts only if it took all the time."""
    rounds: list[_Round] = []
    warm, began = False, time.perf_counter()
    while not rounds or time.perf_counter() - began < seconds:
        taken = np.delete(chosen, len(rounds) % len(chosen)) if warm and len(chosen) > 2 else chosen
        batches = micro_batches(trial.rows, taken, trial.setup.micro_batch, CPU)
        rounds.append(_Round(taken=taken, seconds=tuple(_step(ready, batches, all_layers=layers == slices[-1]) for layers in slices)))
        if not warm and sum(rounds[0].seconds) < seconds:
            rounds.clear()
            warm, began = True, time.perf_counter()
    return rounds


def _step(ready: _Ready, batches: list[MicroBatch], *, all_layers: bool) -> float:
    """Seconds of one step, of all layers or of the first and the last."""
    with _layers(ready.model, all_layers):
        began = time.perf_counter()
        train_step(ready.model, ready.optimizer, batches, precision=ready.precision, max_norm=1.0, seeds=(0, 1))
        return time.perf_counter() - began


@contextmanager
def _layers(model: PreTrainedModel | PeftModel, all_layers: bool) -> Iterator[None]:
    """Leave all layers but the first and the last out for a moment."""
    decoder = base_of(model).get_decoder()
    config, layers, kinds = decoder.config, decoder.layers, kinds_of(decoder.config)
    if not all_layers:
        decoder.layers, config.num_hidden_layers = nn.ModuleList([layers[0], layers[-1]]), 2
        if "layer_types" in config.to_dict():
            config.layer_types = [kinds[0], kinds[-1]]
    try:
        yield
    finally:
        decoder.layers, config.num_hidden_layers = layers, len(layers)
        if "layer_types" in config.to_dict():
            config.layer_types = kinds


def _ready(config: PreTrainedConfig, trial: Trial) -> _Ready:
    setup = trial.setup
    dtype = DTYPES[setup.dtype]
    base = made_up(config, torch.float32 if setup.lora == "none" else dtype)
    if "layers" not in dict(base.get_decoder().named_children()):
        raise CannotProbe(f"the layers of a {type(base).__name__} are not where they are looked for")
    if setup.checkpoint_activations:
        base.activation_checkpointing_enable({"use_reentrant": False})
    model = base if setup.lora == "none" else add_lora(base, setup.lora, 0)
    fusion = fuse(model, pack=setup.engine != "plain", longest=int(trial.rows.lengths.max()))
    engine = _engine(fusion, setup)
    return _Ready(
        model=model.train(), optimizer=make_optimizer(trained_of(model), Training()), precision=Precision.of(dtype, CPU), engine=engine
    )


def _engine(fusion: Fusion, setup: Setup) -> Engine:
    if setup.engine != "plain" and not fusion.packs:
        raise CannotProbe(f"its rows cannot be packed: {'; '.join(fusion.reasons)}", where="data.packing")
    return "plain" if setup.engine == "plain" else "fused" if fusion.num_layers else "packed"

"""What the training loop's `auto` values become: micro batch, gradient checkpointing, patience, the final checkpoint."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from luthier.core.errors import RecipeError
from luthier.model.load import SAID, Resolved
from luthier.recipe.schema import Checkpoints, Training
from luthier.train.order import MicroBatchSize

TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of an `auto` micro batch where memory allows them. The CPU's is measured (2026-11-20, EPYC, two threads, hidden 256 × 4 layers,
LoRA r 16, bfloat16, 16 rows of 50–110 tokens a step): at most 4 rows at once 192 ms a step, 8 rows 152, all 16 133; with one thread the
size made no difference. The GPU's is a guess."""
MEMORY_SHARE = 0.6
"""Of the free memory, for activations; the rest is for gradients, optimizer, and what this estimate misses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What decides over memory: the longest training row, and the share of tokens that are supervised."""

    longest: int
    supervised_share: float
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How the step is computed."""

    micro_batch: MicroBatchSize
    checkpoint_activations: bool
    resolved: tuple[Resolved, ...]

    def to_json(self) -> dict[str, Any]:
        """The numbers, as plan.json has them under `sizes`."""
        return {**asdict(self.micro_batch), "checkpoint_activations": self.checkpoint_activations}

    @classmethod
    def of_plan(cls, plan: Mapping[str, Any]) -> "Sizes":
        """Those in a plan.json."""
        numbers = plan["sizes"]
        return cls(
            micro_batch=MicroBatchSize(rows=numbers["rows"], tokens=numbers["tokens"]),
            checkpoint_activations=numbers["checkpoint_activations"],
            resolved=tuple(Resolved(**item) for item in plan["resolved"] if item["path"].startswith("training.")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """When to stop early and which weights to keep."""

    patience: int
    """Validations without a new best; more than there can be where early stopping is off."""
    best: bool
    """The best checkpoint becomes the adapter, not the last."""
    resolved: tuple[Resolved, ...]


def resolve_sizes(model: PreTrainedModel, training: Training, workload: Workload) -> Sizes:
    """Micro batch and gradient checkpointing that fit the free memory; without checkpointing wherever one micro batch fits without."""
    free = int(free_memory_bytes(model.device) * MEMORY_SHARE)
    auto = training.micro_batch_size == "auto"
    rows = training.global_batch_size if training.micro_batch_size == "auto" else training.micro_batch_size
    at_least = workload.longest * (1 if auto else rows)
    need = at_least * activation_bytes_per_token(model, workload, checkpointing=False)
    if training.gradient_checkpointing == "auto":
        on, why = need > free, f"{at_least} tokens at once need about {need / 1e9:.2g} GB of activations, {free / 1e9:.2g} GB may be used"
    else:
        on, why = training.gradient_checkpointing, SAID
    checkpointing = Resolved(path="training.gradient_checkpointing", value=on, why=why)
    if not auto:
        size = MicroBatchSize(rows=rows, tokens=sys.maxsize)
        said = Resolved(path="training.micro_batch_size", value=rows, why=SAID)
        return Sizes(micro_batch=size, checkpoint_activations=on, resolved=(said, checkpointing))
    per_token = activation_bytes_per_token(model, workload, checkpointing=on)
    tokens = max(workload.longest, min(TOKENS[model.device.type], free // per_token))
    fitting = min(rows, tokens // workload.longest)
    why = f"{tokens} tokens with padding, {per_token / 1e3:.3g} kB of activations each: {fitting} rows of the longest, more of shorter ones"
    chosen = Resolved(path="training.micro_batch_size", value=fitting, why=why)
    return Sizes(micro_batch=MicroBatchSize(rows=rows, tokens=tokens), checkpoint_activations=on, resolved=(chosen, checkpointing))


def resolve_ending(checkpoints: Checkpoints, validation_rows: int) -> Ending:
    """Patience and final checkpoint; raises RecipeError where the recipe wants a best and has no validation rows."""
    if not validation_rows:
        wishes = {
            "checkpoints.final": checkpoints.final == "best",
            "checkpoints.best_by": checkpoints.best_by != "loss",
            "checkpoints.early_stopping_patience": isinstance(checkpoints.early_stopping_patience, int),
        }
        for path in (path for path, wished in wishes.items() if wished):
            raise RecipeError("there are no validation rows to judge by", where=path, change="set data.split.validation, or remove the key")
    patience = checkpoints.early_stopping_patience
    number = patience if patience != "auto" else 3 if validation_rows else "off"
    best = checkpoints.final == "best" or (checkpoints.final == "auto" and validation_rows > 0)
    has_rows = f"{validation_rows or 'no'} validation rows"
    return Ending(
        patience=sys.maxsize if number == "off" else int(number),
        best=best,
        resolved=(
            Resolved(path="checkpoints.early_stopping_patience", value=number, why=has_rows if patience == "auto" else SAID),
            Resolved(path="checkpoints.final", value="best" if best else "last", why=has_rows if checkpoints.final == "auto" else SAID),
        ),
    )


def activation_bytes_per_token(model: PreTrainedModel, workload: Workload, *, checkpointing: bool) -> int:
    """What one token keeps for the backward pass, estimated within a factor of 2 for decoders with gated MLPs and adapters on all layers.

    A layer keeps about 24·hidden + 8·intermediate values (inputs of its products and their copies for the adapter, norms, q, k, v,
    the gate's pieces); recomputed, its input, and one layer's worth for the moment. A supervised token adds three rows of logits in
    float32. Qwen3-0.6B in bfloat16, an eighth supervised: 28 layers × (24·1024 + 8·3072) × 2 B + 152k × 12 B / 8 = 3.0 MB.
    """
    config = model.config.get_text_config()
    values = 24 * config.hidden_size + 8 * config.intermediate_size
    kept = config.hidden_size * config.num_hidden_layers + values if checkpointing else values * config.num_hidden_layers
    return int(kept * workload.dtype.itemsize + 12 * config.vocab_size * workload.supervised_share)


def free_memory_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return psutil.virtual_memory().available

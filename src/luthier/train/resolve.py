"""What the training loop's `auto` values become: micro batch, gradient checkpointing, patience, the final checkpoint."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from luthier.core.errors import PlanRefused, RecipeError
from luthier.model.fuse import Fusion
from luthier.model.load import SAID, Resolved
from luthier.recipe.schema import Checkpoints, Recipe, Training
from luthier.train.order import MicroBatchSize, Packing

TOKENS = {"cpu": 4096, "cuda": 16384}
"""Tokens of an `auto` micro batch where memory allows them. The CPU's is measured (2026-11-20, Zen 5, one thread, hidden 512 × 8 layers,
bfloat16, trees of 16 rows of 316 tokens): a step in packs of at most 1,024 tokens 7.24 s, 2,048 7.16, 4,096 6.74, 8,192 6.76. The GPU's
is a guess."""
MEMORY_SHARE = 0.6
"""Of the free memory, for activations; the rest is for gradients, optimizer, and what this estimate misses."""
WORTH_A_TREE = 0.05
"""Share of a step's tokens that several rows begin with. Building the tree costs 2.4 ms for 16 rows; 5 % of a step of model S are 30 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What decides over memory: the longest training row, and the share of tokens that are supervised."""

    longest: int
    supervised_share: float
    dtype: torch.dtype
    fused: bool
    """Layers are likely to be; it is known for certain only with the adapter in place."""
    logits_in_chunks: bool
    """They are never there all at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How the step is computed."""

    micro_batch: MicroBatchSize
    checkpoint_activations: bool
    resolved: tuple[Resolved, ...]

    def to_json(self) -> dict[str, Any]:
        """The numbers, as plan.json has them under `sizes`."""
        return {**asdict(self.micro_batch), "checkpoint_activations": self.checkpoint_activations}

    def packed(self, packing: Packing, why: str) -> "Sizes":
        """The same with rows packed so."""
        told = Resolved(path="data.packing", value=packing, why=why)
        return replace(self, micro_batch=replace(self.micro_batch, packing=packing), resolved=(*self.resolved, told))

    @classmethod
    def of_plan(cls, plan: Mapping[str, Any]) -> "Sizes":
        """Those in a plan.json."""
        numbers = plan["sizes"]
        return cls(
            micro_batch=MicroBatchSize(rows=numbers["rows"], tokens=numbers["tokens"], packing=numbers["packing"]),
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
        size = MicroBatchSize(rows=rows, tokens=at_least)
        said = Resolved(path="training.micro_batch_size", value=rows, why=SAID)
        return Sizes(micro_batch=size, checkpoint_activations=on, resolved=(said, checkpointing))
    per_token = activation_bytes_per_token(model, workload, checkpointing=on)
    tokens = max(workload.longest, min(TOKENS[model.device.type], free // per_token))
    fitting = min(rows, tokens // workload.longest)
    why = f"{tokens} tokens, {per_token / 1e3:.3g} kB of activations each: {fitting} rows of the longest, more of shorter ones"
    chosen = Resolved(path="training.micro_batch_size", value=fitting, why=why)
    return Sizes(micro_batch=MicroBatchSize(rows=rows, tokens=tokens), checkpoint_activations=on, resolved=(chosen, checkpointing))


def resolve_packing(recipe: Recipe, fusion: Fusion, shared_share: Callable[[], float]) -> tuple[Packing, str]:
    """How rows stand in a micro batch, and why: by what the model allows and the share of tokens a tree saves; raises PlanRefused."""
    wished = recipe.data.packing
    if wished == "off":
        return "off", SAID
    if not fusion.packs:
        chosen = recipe.model.attention != "auto"
        reason = f"model.attention is {recipe.model.attention}" if chosen else "; ".join(fusion.reasons)
        if wished != "auto":
            change = "set data.packing: off, or auto" + ("; or model.attention: auto" if chosen else "")
            raise PlanRefused(f"rows cannot be packed: {reason}", where="data.packing", change=change)
        return "off", reason
    if wished != "auto":
        return wished, SAID
    share = shared_share()
    return "tree" if share >= WORTH_A_TREE else "bins", f"{share:.0%} of the first steps' tokens stand at the start of another row as well"


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

    A fused layer keeps its input twice (for attention and MLP), q, k and v, attention's output, gate and up: 2·hidden + 2·heads·d +
    2·key heads·d + 2·intermediate values: Qwen3-0.6B in bfloat16 28 × (2·1024 + 2·16·128 + 2·8·128 + 2·3072) × 2 B = 0.80 MB. Another
    layer keeps about 16·hidden + 5·intermediate (inputs of products and their copies for the adapter, norms, the gate's pieces): 1.8 MB.
    Where logits are not made in chunks, a supervised token adds three rows of them in float32. Recomputed, a layer keeps its input.
    """
    config = model.config.get_text_config()
    hidden, intermediate, num_layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    if workload.fused:
        size = config.to_dict().get("head_dim") or hidden // config.num_attention_heads
        values = 2 * (hidden + (config.num_attention_heads + config.num_key_value_heads) * size + intermediate)
    else:
        values = 16 * hidden + 5 * intermediate
    kept = hidden * num_layers + values if checkpointing else values * num_layers
    logits = 0.0 if workload.logits_in_chunks else 12 * config.vocab_size * workload.supervised_share
    return int(kept * workload.dtype.itemsize + logits)


def free_memory_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return psutil.virtual_memory().available

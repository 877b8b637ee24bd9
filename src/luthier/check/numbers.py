"""Whether training computes what it should: gradients, packs, adapters and fused functions, on layers like the model's and its own rows
(traps 1, 3, 4, 17, 27).

What is tried is a slice of the model, a layer of each kind at its own widths with random weights, the recipe's adapter, and the beginnings
of a few rows whose tokens are numbered anew, so that no vocabulary is computed that no row has. All of it in float32.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from luthier.check.outcome import Outcome, beside, judged
from luthier.core.errors import RecipeError
from luthier.core.hardware import free_memory_bytes
from luthier.data.pack import Pack, bins, trees
from luthier.data.store import TokenRow, TokenRows
from luthier.model.adapt import add_lora, missed_experts
from luthier.model.arrive import Bits, store
from luthier.model.fuse import Fusion, fuse
from luthier.model.place import trained_of
from luthier.model.quantize import QuantizedLinear
from luthier.recipe.schema import Recipe
from luthier.train.batch import MicroBatch, collate, of_pack
from luthier.train.passes import backward, forward
from luthier.train.precision import Precision
from luthier.train.slices import kinds_of, made_up, sliced, text_config

CPU = torch.device("cpu")
ROWS = 8
MOST_TOKENS, FEWEST_TOKENS = 64, 12
"""Of each row."""
OPERATIONS = 1.5e12
"""Of all passes: half a minute of float32 on two cores."""
PASSES = 14
TOLERANCE = 1e-4
"""Relative, of each tensor's gradient, and in nats of each token. A wrong scale, position or mask gives more than 1e-2, ways to add up the
same sums less than 1e-5 (docs/notes/check.md)."""
MEMORY_SHARE = 0.5
"""Of what is free, for weights and gradients of the slice."""
B_SCALE = 0.02
"""Of an adapter's second matrix, which begins as zeros: then the first one would have no gradient to compare."""
Gradients = dict[str, Tensor]
Packer = Callable[[Sequence[TokenRow], Sequence[int], int], list[Pack]]


class TooLargeToTry(Exception):
    """The slice does not fit into this machine's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is tried."""

    recipe: Recipe
    config: PreTrainedConfig
    rows: tuple[TokenRow, ...]
    learns: bool = False
    """Whether it is to learn, and not only to be compared: then its weights have the size of trained ones."""

    def build(self, *, pack: bool) -> tuple[PreTrainedModel | PeftModel, Fusion]:
        """The slice as training sets it up, the same weights each time."""
        base = made_up(self.config, torch.float32, by_width=self.learns)
        bits, lora = self.recipe.model, self.recipe.lora
        if bits.quantization != "none":
            store(base, Bits(kind=bits.quantization, double_quant=bits.double_quant, dtype=torch.float32))
        model = base if lora == "none" else add_lora(base, lora.model_copy(update={"init_from": ""}), self.recipe.seed)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=B_SCALE, generator=torch.Generator().manual_seed(0))
        fusion = fuse(model, pack=pack, longest=max(map(len, self.rows)))
        return model.train(), fusion

    def gradients(self, model: nn.Module, batches: Sequence[MicroBatch]) -> Gradients:
        """Of the rows' loss by what is trained, which is left without."""
        targets = sum(batch.num_targets for batch in batches)
        backward(model, batches, Precision.of(torch.float32, CPU), seeds=(self.recipe.seed, 1), num_targets=targets)
        found = {}
        for name, weight in trained_of(model).items():
            found[name], weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad, None
        return found

    def padded(self, size: int) -> list[MicroBatch]:
        """The rows, so many side by side."""
        numbers = range(len(self.rows))
        parts = [numbers[start : start + size] for start in numbers[::size]]
        return [collate([self.rows[number] for number in part], part, CPU) for part in parts]

    def packed(self, rows: Sequence[TokenRow], packer: Packer) -> MicroBatch:
        """All in one pack."""
        (pack,) = packer(rows, range(len(rows)), sum(map(len, rows)))
        return of_pack(pack, CPU)


def numeric_checks(recipe: Recipe, config: Mapping[str, Any], rows: TokenRows) -> list[Outcome]:
    """All of them; those that have nothing to look at say why."""
    faults = (DIVISION, LEAK, NO_GRADIENT, KERNEL)
    try:
        trial = trial_of(recipe, config, rows)
        return _tried(trial)
    except (TooLargeToTry, RecipeError) as error:  # a recipe may name layers that the slice has not
        return [beside(fault, str(error)) for fault in faults]


def trial_of(recipe: Recipe, config: Mapping[str, Any], rows: TokenRows) -> Trial:
    """The slice of the model and the beginnings of rows; raises TooLargeToTry."""
    whole = text_config(config)
    kinds = kinds_of(whole)
    # float32: twice where all are trained; with an adapter, and what is computed
    layers = tuple(sorted({kinds.index(kind) for kind in kinds} | {len(kinds) - 1}))
    small, parameters = slice_of(whole, layers, num_bytes=12 if recipe.lora == "none" else 6)
    numbers = np.unique(np.linspace(0, len(rows) - 1, ROWS).round().astype(int)).tolist()
    most = int(np.clip(OPERATIONS / (PASSES * 4 * parameters * len(numbers)), FEWEST_TOKENS, MOST_TOKENS))
    cut = [beginning(rows[number], most - place * most // (2 * ROWS)) for place, number in enumerate(numbers)]  # ragged
    ids, renumbered = np.unique(np.concatenate([row.ids for row in cut]), return_inverse=True)
    small.vocab_size = max(len(ids) + 1, 64)
    borders = np.cumsum([len(row) for row in cut])[:-1]
    return Trial(
        recipe=recipe,
        config=small,
        rows=tuple(
            TokenRow(ids=part.astype(np.int32), supervised=row.supervised)
            for part, row in zip(np.split(renumbered, borders), cut, strict=True)
        ),
    )


def slice_of(whole: PreTrainedConfig, layers: tuple[int, ...], *, num_bytes: int) -> tuple[PreTrainedConfig, int]:
    """These layers of the model, without tokens of a meaning, and their parameters, each of which takes so much; raises TooLargeToTry."""
    small = sliced(whole, layers)
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(small).get_decoder().layers.parameters())
    needed = parameters * num_bytes
    if needed > MEMORY_SHARE * free_memory_bytes():
        raise TooLargeToTry(f"{len(layers)} layers of this model need {needed / 1e9:.1f} GB in float32, more than half of what is free")
    return small, parameters


def beginning(row: TokenRow, most: int) -> TokenRow:
    """At most so many tokens of a row, those around the first that is trained on."""
    first = int(np.argmax(row.supervised))
    start = min(max(0, first - most // 2), max(0, len(row) - most))
    supervised = row.supervised[start : start + most].copy()
    supervised[0] = False
    return TokenRow(ids=np.array(row.ids[start : start + most]), supervised=supervised)


DIVISION = "the division into micro batches changes the gradient"
LEAK = "rows that are computed together see each other"
NO_GRADIENT = "something that the adapter should train has no gradient"
KERNEL = "a fused function computes another gradient than the plain one"


def _tried(trial: Trial) -> list[Outcome]:
    model, _ = trial.build(pack=False)
    whole = trial.gradients(model, trial.padded(len(trial.rows)))
    found = [_division(trial, model, whole), _no_gradient(trial, model, whole)]
    del model
    gc.collect()
    model, fusion = trial.build(pack=trial.recipe.data.packing != "off" and trial.recipe.model.attention == "auto")
    return [found[0], _leak(trial, model, fusion), found[1], _kernel(trial, model, fusion, whole)]


def _division(trial: Trial, model: nn.Module, whole: Gradients) -> Outcome:
    """Trap 1: means of means."""
    rows = len(trial.rows)
    sizes = {1: f"{rows} × 1", max(1, rows // 2): f"2 × {rows // 2}"}
    apart = {name: difference(trial.gradients(model, trial.padded(size)), whole) for size, name in sizes.items()}
    wrong = [f"{name} rows: {worst}" for name, (value, worst) in apart.items() if not value <= TOLERANCE]
    told = ", ".join(f"{name}: {value:.1e}" for name, (value, _) in apart.items())
    return judged(
        DIVISION, wrong, f"gradients of {rows} rows at once with those of them divided ({told})", "report it: the loss is not a sum"
    )


def _leak(trial: Trial, model: nn.Module, fusion: Fusion) -> Outcome:
    """Traps 3 and 4: attention, or a layer with a state, that does not end where a row ends."""
    rows, packer = trial.rows, bins if trial.recipe.data.packing == "bins" else trees
    changed = TokenRow(ids=(rows[0].ids + 1) % trial.config.vocab_size, supervised=rows[0].supervised)

    def losses(own: Sequence[TokenRow]) -> list[Tensor]:
        """Of each row's targets, from all of them computed together."""
        batch = trial.packed(own, packer) if fusion.packs else collate(own, range(len(own)), CPU)
        (seen,) = forward(model, [batch], Precision.of(torch.float32, CPU))
        return [seen.nll_N[torch.from_numpy(seen.targets_M[seen.rows_M == number])] for number in range(len(own))]

    together, alone, others = losses(rows), [losses([row])[0] for row in rows], losses([changed, *rows[1:]])
    apart = {
        "the same row alone": max(float((one - other).abs().max()) for one, other in zip(together, alone, strict=True)),
        "itself once the first row is another": max(
            (float((one - other).abs().max()) for one, other in zip(together[1:], others[1:], strict=True)), default=0.0
        ),
    }
    wrong = [f"a row's tokens are {value:.1e} nats from {name}" for name, value in apart.items() if not value <= TOLERANCE]
    how = f"in one pack ({packer.__name__})" if fusion.packs else f"padded ({'; '.join(fusion.reasons) or 'data.packing is off'})"
    told = ", ".join(f"{name}: {value:.1e}" for name, value in apart.items())
    return judged(LEAK, wrong, f"losses of {len(rows)} rows {how}, in nats, with {told}", "set data.packing: off, and report it")


def _no_gradient(trial: Trial, model: PreTrainedModel | PeftModel, whole: Gradients) -> Outcome:
    """Trap 17: modules that were asked for and are not trained."""
    lora = trial.recipe.lora
    wrong = [f"{name} has a gradient of zeros" for name, gradient in whole.items() if not gradient.any()]
    if lora == "none" or not isinstance(model, PeftModel):
        return judged(NO_GRADIENT, wrong, f"{len(whole)} weights", "report it")
    covered = model.base_model.targeted_module_names
    base = model.get_base_model()
    linear = {name for name, module in base.named_modules() if isinstance(module, (nn.Linear, QuantizedLinear)) and "lora_" not in name}
    head = {name for name, module in base.named_modules() if module is base.get_output_embeddings()}
    left = sorted({name.removesuffix(".base_layer") for name in linear - head} - set(covered))
    if lora.target_modules == "all-linear" and left:
        wrong.append(f"all-linear leaves out {', '.join(sorted({name.split('.', 3)[-1] for name in left}))}")
    missed = missed_experts(base, tuple(model.base_model.targeted_parameter_names))
    told = f"{len(whole)} matrices of the adapter, on {len(covered)} layers of the slice" + "".join(
        f"; {finding.message}" for finding in missed
    )
    return judged(NO_GRADIENT, wrong, told, "name the modules in lora.target_modules, fused experts in lora.target_parameters")


def _kernel(trial: Trial, model: nn.Module, fusion: Fusion, whole: Gradients) -> Outcome:
    """Trap 27: an option that the fast path leaves out."""
    if not (fusion.packs or fusion.num_layers or fusion.num_linear):
        return beside(KERNEL, f"nothing is fused or packed: {'; '.join(fusion.reasons) or 'data.packing is off'}")
    value, worst = difference(trial.gradients(model, [trial.packed(trial.rows, bins)]), whole)  # in trees rows share masks
    lora = trial.recipe.lora
    options = "all weights trained" if lora == "none" else f"dropout {lora.dropout}, DoRA {lora.use_dora}, rsLoRA {lora.use_rslora}".lower()
    wrong = [worst] if not value <= TOLERANCE else []
    compared = f"gradients with {fusion} and in one pack with PEFT's own on padded rows ({options}): {value:.1e}"
    return judged(KERNEL, wrong, compared, "set model.attention: sdpa, and report it")


def difference(found: Gradients, expected: Gradients) -> tuple[float, str]:
    """The largest relative difference of a tensor, and in words which; of all together where one is zeros in both."""
    apart = {name: float((found[name] - other).norm() / other.norm().clamp_min(1e-30)) for name, other in expected.items()}
    name = max(apart, key=lambda name: apart[name])
    return apart[name], f"{name} is {apart[name]:.1e} of itself away"

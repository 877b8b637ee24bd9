"""adapter_config.json, which may be a stranger's: what of it is taken, and what is refused. PEFT is not given the file itself.

PEFT would import modules that it names, take patterns that never end, change the base's weights (`init_lora_weights: pissa`), or leave out
in silence what it does not know.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import regex
from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from luthier.core.errors import ModelError

CONFIG = "adapter_config.json"
HIGHEST_RANK = 8192
"""Far above any that is used; one of 10⁹ would take all memory before its weights are looked at."""
UNREAD = frozenset(
    {
        *("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping"),  # where it came from
        *(
            "lora_dropout",
            "init_lora_weights",
            "loftq_config",
            "eva_config",
            "corda_config",
            "lora_ga_config",
            "runtime_config",
        ),  # training's
        *("megatron_core", "qalora_group_size", "ensure_weight_tying"),  # of options that are refused, or of saving
    }
)
"""Keys that say nothing of how a trained adapter computes."""

Rank = Annotated[int, Field(ge=1, le=HIGHEST_RANK)]
Alpha = Annotated[float, Field(gt=0, lt=math.inf)]
Name = Annotated[str, Field(pattern=r"^(?:\.\*\\?\.|\^)?(?:[A-Za-z0-9_.-]|\\\.)+\$?$", max_length=300)]
"""A module's name, or its end: PEFT reads keys of rank_pattern as patterns, and writes `.*\\.gate_up_proj` itself."""
PATTERN_SECONDS = 1.0


class AdapterConfig(BaseModel):
    """What makes a LoRA adapter compute as it was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    r: Rank
    lora_alpha: Alpha
    target_modules: list[Name] | str | None = None
    """Names; or `all-linear`, or a pattern that the whole name must match."""
    target_parameters: list[Name] | None = None
    exclude_modules: list[Name] | None = None
    rank_pattern: dict[Name, Rank] = {}
    alpha_pattern: dict[Name, Alpha] = {}
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    modules_to_save: list[Name] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[Name] | Name | None = None


def read_config(folder: Path, model: nn.Module) -> LoraConfig:
    """The configuration of a folder's adapter for this model, as PEFT takes it; raises ModelError for what is malformed or not read."""
    place = folder / CONFIG
    try:
        values: Any = json.loads(place.read_text(encoding="utf-8"))
        read = values if not isinstance(values, dict) else {name: value for name, value in values.items() if value and name not in UNREAD}
        config = AdapterConfig.model_validate(read)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False)[0]
        what = f"{'.'.join(map(str, wrong['loc'][:2])) or 'it'} is {wrong['input']!r:.80}: {wrong['msg']}"
        raise ModelError(what, where=str(place), change="take a plain LoRA adapter, as PEFT writes it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read as JSON: {error}", where=str(place), change="fetch the adapter anew") from error
    fields = config.model_dump(exclude_unset=True)
    if isinstance(config.target_modules, str) and config.target_modules != "all-linear":
        fields["target_modules"] = _matching(config.target_modules, model, place)
    try:
        return LoraConfig(**fields, inference_mode=True)
    except ValueError as error:  # options that do not go together
        raise ModelError(f"PEFT refuses it: {error}", where=str(place), change="take a plain LoRA adapter, as PEFT writes it") from error


def _matching(pattern: str, model: nn.Module, place: Path) -> list[str]:
    """The modules that a pattern matches, each by its whole name; PEFT's own search has no end for `(a+)+$`."""
    try:
        compiled = regex.compile(pattern)
        names = [name for name, _ in model.named_modules() if compiled.fullmatch(name, timeout=PATTERN_SECONDS)]
    except (regex.error, TimeoutError) as error:
        what = f"target_modules is a pattern that cannot be matched: {error or 'it takes too long'}"
        raise ModelError(what, where=str(place), change="list the modules' names") from error
    if not names:
        raise ModelError("target_modules matches no layer of this base", where=str(place))
    return names

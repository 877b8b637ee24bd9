"""A model of some of another's layers, with its own widths and random weights: what its arithmetic costs and whether it is right."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

PATTERN = 1_000_003
"""Random numbers that weights repeat: drawing 1.8 billion takes 25 s, copying them one."""


def text_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The decoder's part of a config.json, as transformers has it."""
    values = {name: value for name, value in config.items() if name != "model_type"}
    return AutoConfig.for_model(str(config["model_type"]), **values).get_text_config()


def kinds_of(config: PreTrainedConfig) -> list[str]:
    """Of each layer; the same where the config does not tell them apart."""
    return list(config.to_dict().get("layer_types") or [""] * config.num_hidden_layers)


def sliced(whole: PreTrainedConfig, layers: tuple[int, ...]) -> PreTrainedConfig:
    """The config with these layers only."""
    config = copy.deepcopy(whole)
    if "layer_types" in config.to_dict():
        config.layer_types = [kinds_of(whole)[layer] for layer in layers]
    config.num_hidden_layers = len(layers)
    return config


def made_up(config: PreTrainedConfig, dtype: torch.dtype, *, by_width: bool = False) -> PreTrainedModel:
    """A model of this config with random weights, always the same: small ones, or `by_width` such that layers keep the size of what they
    are given, as trained ones do."""
    with no_init_weights():
        base: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    fill(base, by_width=by_width)
    return base


@torch.no_grad()
def fill(model: nn.Module, *, by_width: bool = False) -> None:
    """Random numbers in every matrix, zeros in biases: a time depends on them only where they are no numbers at all."""
    pattern = torch.randn(PATTERN, generator=torch.Generator().manual_seed(0))
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            flat, numbers = weight.view(-1), (pattern * (weight.shape[-1] ** -0.5 if by_width else 0.02)).to(weight.dtype)
            for start in range(0, len(flat), PATTERN):
                part = flat[start : start + PATTERN]
                part.copy_(numbers[: len(part)])
        elif name.endswith("bias"):
            weight.zero_()

"""AdamW, in float32 or 8 bits, what a checkpoint keeps of it, and the learning rate as a function of the step."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.model.place import Trained
from luthier.model.quantize import library
from luthier.plan.steps import Steps
from luthier.plan.weights import EIGHT_BIT_LEAST
from luthier.recipe.schema import Training

MOMENTS = ({"exp_avg", "exp_avg_sq"}, {"state1", "state2"})
"""torch's names, and bitsandbytes'."""
LARGEST = {"absmax1", "absmax2"}
"""Of each 256 numbers of a moment in 8 bits."""
TABLES = {"qmap1": "dynamic", "qmap2": "udynamic"}
"""What the 8 bits stand for: bitsandbytes' own, the same for every parameter, and so not saved."""


def make_optimizer(trained: Trained, training: Training) -> torch.optim.Optimizer:
    """AdamW over what is trained here; matrices decay, vectors (norms, biases, DoRA's magnitudes) do not.

    Raises ModelError where it is to be bitsandbytes' and that is not installed.
    """
    groups = [
        {"params": [parameter for parameter in trained.values() if parameter.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [parameter for parameter in trained.values() if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": training.learning_rate, "betas": (0.9, 0.999), "eps": 1e-8}
    if training.optimizer == "adamw":
        return torch.optim.AdamW(filled, fused=True, **options)
    classes = library().optim
    of_8_bits = {"adamw_8bit": classes.AdamW8bit, "paged_adamw_8bit": classes.PagedAdamW8bit}[training.optimizer]
    made: torch.optim.Optimizer = of_8_bits(filled, min_8bit_size=EIGHT_BIT_LEAST, **options)
    return made


def moments_of(optimizer: torch.optim.Optimizer) -> set[str]:
    """The names that it has for what it keeps in the shape of a parameter."""
    return MOMENTS["name2qmap" in vars(optimizer)]


def tensors_of(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the optimizer keeps of one parameter, as tensors to save."""
    return {key: torch.as_tensor(value) for key, value in values.items() if key not in TABLES}


def fits(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, shape: torch.Size) -> bool:
    """Whether saved tensors are what this optimizer keeps of a parameter of this shape."""
    moments = moments_of(optimizer)
    if not moments <= tensors.keys() or any(tensors[name].shape != shape for name in moments):
        return False
    in_8_bits = any(tensors[name].dtype == torch.uint8 for name in moments)
    return tensors.keys() == moments | {"step"} | (LARGEST if in_8_bits else set())


def put_back(optimizer: Any, states: list[dict[str, Tensor]]) -> None:
    """Let the optimizer go on from what was saved of each of its parameters, in order; from nothing, where that is empty."""
    state: dict[int, dict[str, Any]] = {index: dict(tensors) for index, tensors in enumerate(states) if tensors}
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return
    for values in state.values():
        values["step"] = int(values["step"])
        if values.keys() >= LARGEST:
            values |= {name: optimizer.name2qmap[table] for name, table in TABLES.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items() if optimizer.is_paged else ():
        for name in MOMENTS[1]:  # into memory that can go to the host and come back
            values[name] = optimizer.get_state_buffer(parameter, dtype=values[name].dtype).copy_(values[name])


def rate_at(step: int, steps: Steps, training: Training) -> float:
    """The learning rate of a step (from 1).

    Warm-up climbs to the peak in `steps.warmup` equal stairs, none of them 0. After it the schedules are those of transformers:
    of 45 steps with 2 of warm-up, the third has the peak and the last still cosine's 0.0013 of it.
    """
    if step <= steps.warmup:
        return training.learning_rate * step / steps.warmup
    done = (step - 1 - steps.warmup) / (steps.total - steps.warmup)
    match training.lr_scheduler:
        case "constant":
            factor = 1.0
        case "linear":
            factor = 1 - done
        case "cosine":
            factor = (1 + math.cos(math.pi * done)) / 2
        case "cosine_with_restarts":
            factor = (1 + math.cos(math.pi * (done * training.lr_cycles % 1.0))) / 2
    return training.learning_rate * factor


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use this rate in the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every parameter that the optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]

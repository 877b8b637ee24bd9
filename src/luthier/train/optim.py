"""AdamW, and the learning rate as a function of the step."""

import math

import torch

from luthier.model.place import Trained
from luthier.plan.steps import Steps
from luthier.recipe.schema import Training


def make_optimizer(trained: Trained, training: Training) -> torch.optim.AdamW:
    """AdamW over what is trained here; matrices decay, vectors (norms, biases, DoRA's magnitudes) do not."""
    groups = [
        {"params": [parameter for parameter in trained.values() if parameter.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [parameter for parameter in trained.values() if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=training.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


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


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every parameter that the optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]

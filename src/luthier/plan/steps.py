"""The arithmetic of steps: how many, how long the rate climbs, when the run validates and saves."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from luthier.recipe.schema import Checkpoints, Training

TIMES = 10
"""Validations of a run, where `auto` can afford them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Optimizer steps of a run. `saves` and `evaluations` are step numbers from 1 and contain the last step."""

    rows: int
    global_batch_size: int
    per_epoch: int
    total: int
    warmup: int
    saves: tuple[int, ...]
    evaluations: tuple[int, ...]

    def epoch_at(self, step: int) -> float:
        """Epochs completed after `step`: 1.5 is the middle of the second."""
        return step / self.per_epoch

    @property
    def last_save_before_end(self) -> int:
        """What is left of a run that is killed in its last step; 0 where that is nothing."""
        return max((step for step in self.saves if step < self.total), default=0)

    def to_json(self) -> dict[str, Any]:
        """The steps as they stand in plan.json."""
        return asdict(self)


def count_steps(rows: int, validation_rows: int, training: Training, checkpoints: Checkpoints) -> Steps:
    """Steps of a run over `rows` training rows; without validation rows nothing is validated.

    An epoch's last step takes the rows that are left, so an epoch has ⌈rows / batch⌉ steps:
    238 rows, 16 a step → 15 an epoch, 45 in 3 epochs (seed 004's own correction of its 240).
    """
    per_epoch = math.ceil(rows / training.global_batch_size)
    total = training.max_steps if training.max_steps is not None else math.ceil(per_epoch * (training.epochs or 0) - 1e-9)
    warmup = training.warmup_steps if training.warmup_steps is not None else math.ceil(total * (training.warmup_ratio or 0) - 1e-9)
    looks = _falls_at(_eval_steps(checkpoints, rows, validation_rows, total / per_epoch), per_epoch, total) if validation_rows else ()
    return Steps(
        rows=rows,
        global_batch_size=training.global_batch_size,
        per_epoch=per_epoch,
        total=total,
        warmup=warmup,
        saves=_falls_at(checkpoints.save_steps, per_epoch, total),
        evaluations=looks,
    )


def _eval_steps(checkpoints: Checkpoints, rows: int, validation_rows: int, epochs: float) -> int | float | str:
    """`eval_steps`, its `auto` a share. A validation costs half a LoRA training step for each row: n of them n·validation_rows / 2 beside
    epochs · rows, so that a fifth of the run allows n ≤ epochs · rows / (2 · validation_rows). Of 8 : 1 rows, 1 epoch 4, 3 epochs 10."""
    if checkpoints.eval_steps != "auto":
        return checkpoints.eval_steps
    affordable = int(epochs * rows / (2 * validation_rows) * 0.9)  # a tenth less, because validation rows may be longer
    return 1 / max(1, min(TIMES, affordable))


def _falls_at(interval: int | float | str, per_epoch: int, total: int) -> tuple[int, ...]:
    """Every `interval` steps (a float is a share of all steps, `epoch` an epoch's end), and at the last step."""
    match interval:
        case float():
            every = max(1, round(interval * total))
        case int():
            every = interval
        case _:
            every = per_epoch
    return (*range(every, total, every), total)

"""Our step against transformers' Trainer: the same rows, the same updates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments

from luthier.data.store import TokenRow
from luthier.model.place import trained_of
from luthier.plan.steps import Steps
from luthier.recipe.schema import Training
from luthier.train.optim import make_optimizer, rate_at, set_rate
from luthier.train.step import train_step
from tests.train.workshop import FLOAT32, in_batches, ragged_rows, tiny_model

STEPS, ROWS, MICRO_BATCH = 8, 6, 2
SETTINGS = Training(learning_rate=3e-3, weight_decay=0.1, max_grad_norm=0.5, lr_scheduler="linear")
PLAN = Steps(rows=STEPS * ROWS, global_batch_size=ROWS, per_epoch=STEPS, total=STEPS, warmup=2, saves=(STEPS,), evaluations=())


def padded(rows: list[TokenRow]) -> dict[str, torch.Tensor]:
    """What Trainer's user collates: right-padded ids, mask, labels of -100 where there is no loss."""
    longest = max(len(row) for row in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.from_numpy(row.ids.astype("int64"))
        mask[index, : len(row)] = 1
        labels[index, : len(row)] = torch.where(torch.from_numpy(row.supervised), ids[index, : len(row)], -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class InOrder(Trainer):
    """Takes the rows as they come."""

    def _get_train_sampler(self, *args: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Log(TrainerCallback):
    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **rest: Any) -> None:
        if "grad_norm" in logs:
            self.lines.append(logs)


def trainers_steps(rows: list[TokenRow], folder: Path) -> tuple[list[dict[str, float]], torch.nn.Module]:
    model = tiny_model()
    optimizer = make_optimizer(trained_of(model), SETTINGS)
    schedule = LambdaLR(optimizer, lambda done: rate_at(min(done + 1, STEPS), PLAN, SETTINGS) / SETTINGS.learning_rate)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=ROWS // MICRO_BATCH,
        max_grad_norm=SETTINGS.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    log = Log()
    trainer = InOrder(model, arguments, data_collator=padded, train_dataset=rows, optimizers=(optimizer, schedule), callbacks=[log])
    trainer.train()
    return log.lines, model


def test_eight_steps_have_the_loss_and_gradient_norm_of_transformers_trainer(tmp_path: Path) -> None:
    lengths = [5 + 7 * place % 31 for place in range(STEPS * ROWS)]
    rows = [row for start in range(0, len(lengths), ROWS) for row in ragged_rows(lengths[start : start + ROWS])]
    theirs, their_model = trainers_steps(rows, tmp_path)
    model = tiny_model().train()
    optimizer = make_optimizer(trained_of(model), SETTINGS)
    for step in range(1, STEPS + 1):
        rate = rate_at(step, PLAN, SETTINGS)
        set_rate(optimizer, rate)
        batches = in_batches(rows[(step - 1) * ROWS : step * ROWS], MICRO_BATCH)
        ours = train_step(model, optimizer, batches, precision=FLOAT32, max_norm=SETTINGS.max_grad_norm, seeds=(0, step))
        assert ours.loss == pytest.approx(theirs[step - 1]["loss"], rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs[step - 1]["grad_norm"], rel=1e-5)
        assert rate == pytest.approx(theirs[step - 1]["learning_rate"], rel=1e-9)
    for one, other in zip(model.parameters(), their_model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

"""LitGPT's `finetune_lora`. Options: `micro` rows at once, `precision`. Its loop has no callbacks: it is held where it asks for rows."""

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data.base import DataModule, get_sft_collate_fn
from litgpt.finetune.lora import setup
from torch.utils.data import DataLoader, Sampler

from bench.protocol import ALPHA, LEARNING_RATE, RANK, Gate, Row, account, read_rows


class GatedOrder(Sampler[int]):
    """A new order every epoch. The next row is asked for when the step before is done, and the first one after the last ends the epoch."""

    def __init__(self, gate: Gate, rows: Sequence[Row]) -> None:
        self._gate, self._rows = gate, rows
        self._draw = random.Random(gate.task.seed)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self._rows)))
        self._draw.shuffle(order)
        for place, number in enumerate(order):
            if place and place % self._gate.task.batch == 0:
                self._gate.step()
            yield number
        self._gate.step()
        self._gate.epoch(lambda: account((row.ids, row.supervised) for row in self._rows))


class Rows(DataModule):
    """The task's tokens as LitGPT's own data sets have them."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate, self._rows = gate, read_rows(gate.task.files.rows)

    def connect(self, tokenizer: object = None, batch_size: int = 1, max_seq_length: int | None = None, **others: object) -> None:
        """Rows at once."""
        self._batch_size = batch_size

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Held at epoch ends."""
        samples = [_sample(row) for row in self._rows]
        order = GatedOrder(self._gate, self._rows)
        return DataLoader(samples, batch_size=self._batch_size, sampler=order, collate_fn=get_sft_collate_fn())  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The shortest row: LitGPT validates once before it starts."""
        shortest = min(self._rows, key=lambda row: len(row.ids))
        return DataLoader([_sample(shortest)], batch_size=1, collate_fn=get_sft_collate_fn())  # type: ignore[arg-type]


def _sample(row: Row) -> dict[str, Any]:
    ids = torch.tensor(row.ids)
    counts = {"raw": len(row.ids), "raw_plus_prompt_template": len(row.ids)}
    return {"input_ids": ids, "labels": torch.where(torch.tensor(row.supervised, dtype=torch.bool), ids, -100), "token_counts": counts}


def main() -> None:
    """Train until the controller has enough."""
    gate = Gate(("torch", "litgpt", "lightning"))
    task = gate.task
    sys.argv = sys.argv[:1]  # LitGPT looks at the command line
    setup(
        checkpoint_dir=Path(task.files.model).parent / f"{Path(task.files.model).name}-litgpt",
        out_dir=Path(task.scratch),
        precision=task.options["precision"],
        lora_r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=task.dropout,
        **{f"lora_{name}": True for name in ("query", "key", "value", "projection", "mlp")},
        data=Rows(gate),
        train=TrainArgs(
            save_interval=10**9,
            log_interval=10,
            global_batch_size=task.batch,
            micro_batch_size=task.options["micro"],
            lr_warmup_steps=1,
            epochs=task.epochs,
        ),
        eval=EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": LEARNING_RATE, "weight_decay": 0.0}},
        seed=task.seed,
    )


if __name__ == "__main__":
    main()

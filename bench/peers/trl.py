"""TRL's SFTTrainer. Options: `micro` rows at once, `model` for from_pretrained, `args` for SFTConfig, `whole` dialogues, not turns."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from bench.peers.callback import GateCallback
from bench.protocol import ALPHA, LEARNING_RATE, LONGEST, MODULES, RANK, Account, Gate, Task, account, read_rows


def config_of(task: Task) -> SFTConfig:
    """The setting as SFTConfig; everything it does not name stays TRL's default."""
    wished: dict[str, Any] = {"max_length": LONGEST, "assistant_only_loss": task.options["whole"], **task.options.get("args", {})}
    micro = task.options["micro"]
    accumulation = math.ceil(task.batch / micro)
    if wished.get("packing"):  # as many packs a step as make 16 rows on average
        tokens = sum(len(row.ids) for row in read_rows(task.files.rows))
        num_rows = len(read_rows(task.files.rows))
        accumulation = max(1, round(tokens / num_rows * task.batch / wished["max_length"] / micro))
    return SFTConfig(
        output_dir=task.scratch,
        num_train_epochs=task.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=task.device == "cpu",
        dataloader_pin_memory=task.device == "cuda",
        seed=task.seed,
        model_init_kwargs=task.options.get("model", {}),
        **wished,
    )


def main() -> None:
    """Train until the controller has enough."""
    gate = Gate(("torch", "transformers", "peft", "trl"))
    task = gate.task
    torch.manual_seed(task.seed)
    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(task.files.model)
    if task.options["whole"]:
        rows = [{"messages": list(row.messages)} for row in read_rows(task.files.whole)]
    else:
        tokenizer.chat_template = Path(task.files.template).read_text(encoding="utf-8")
        rows = [{"prompt": list(row.messages[:-1]), "completion": [row.messages[-1]]} for row in read_rows(task.files.rows)]
    config = config_of(task)

    def count() -> Account:
        return account(_pairs(trainer.train_dataset), joined=bool(config.packing))

    trainer = SFTTrainer(
        task.files.model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=task.dropout, target_modules=list(MODULES), task_type="CAUSAL_LM"),
        callbacks=[GateCallback(gate, count)],
        processing_class=tokenizer,
    )
    trainer.train()


def _pairs(dataset: Any) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Ids and targets as TRL made them."""
    for row in dataset:
        yield row["input_ids"], [label != -100 for label in row["labels"]]


if __name__ == "__main__":
    main()

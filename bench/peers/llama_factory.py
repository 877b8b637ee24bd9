"""LLaMA-Factory's `run_exp`. Options: `micro` rows at once, `args` of its own. It is given the tokens, as its `tokenized_path` allows."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from datasets import Dataset, DatasetDict

from bench.peers.callback import GateCallback
from bench.protocol import ALPHA, LEARNING_RATE, RANK, Gate, account, read_rows


def without_audio() -> None:
    """An empty torchaudio: LLaMA-Factory imports it for rows with sound, and its wheels do not load beside a CPU build of torch."""
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)


def main() -> None:
    """Train until the controller has enough."""
    without_audio()
    from llamafactory.train.tuner import run_exp

    gate = Gate(("torch", "transformers", "peft", "llamafactory"))
    task = gate.task
    dataset = Dataset.from_list(
        [
            {
                "input_ids": list(row.ids),
                "attention_mask": [1] * len(row.ids),
                "labels": [token if target else -100 for token, target in zip(row.ids, row.supervised, strict=True)],
            }
            for row in read_rows(task.files.rows)
        ]
    )
    tokenized = Path(task.scratch) / "tokenized"
    DatasetDict({"train": dataset}).save_to_disk(tokenized)
    wished = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": task.files.model,
        "template": "empty",
        "dataset": "rows",  # wanted, and not read beside the next line
        "tokenized_path": str(tokenized),
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": task.dropout,
        "lora_target": "all",
        "output_dir": str(Path(task.scratch) / "out"),
        "num_train_epochs": task.epochs,
        "per_device_train_batch_size": task.options["micro"],
        "gradient_accumulation_steps": task.batch // task.options["micro"],
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "use_cpu": task.device == "cpu",
        "dataloader_pin_memory": task.device == "cuda",
        "seed": task.seed,
        **task.options.get("args", {}),
    }
    run_exp(
        wished,
        [GateCallback(gate, lambda: account((row["input_ids"], [label != -100 for label in row["labels"]]) for row in dataset))],
    )


if __name__ == "__main__":
    main()

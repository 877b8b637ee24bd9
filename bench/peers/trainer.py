"""transformers' Trainer with PEFT. Options: `micro` rows at once, `dtype`, `autocast_adapter_dtype`, `args` for TrainingArguments."""

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from bench.peers.callback import GateCallback
from bench.protocol import ALPHA, LEARNING_RATE, MODULES, RANK, Gate, Task, account, read_rows


def arguments_of(task: Task) -> TrainingArguments:
    """The setting as TrainingArguments."""
    return TrainingArguments(
        output_dir=task.scratch,
        num_train_epochs=task.epochs,
        per_device_train_batch_size=task.options["micro"],
        gradient_accumulation_steps=task.batch // task.options["micro"],
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
        use_cpu=task.device == "cpu",
        dataloader_pin_memory=task.device == "cuda",
        seed=task.seed,
        **task.options.get("args", {}),
    )


def main() -> None:
    """Train until the controller has enough."""
    gate = Gate(("torch", "transformers", "peft"))
    task = gate.task
    torch.manual_seed(task.seed)
    dtype = torch.float32 if task.options.get("dtype") == "float32" else torch.bfloat16
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=task.dropout, target_modules=list(MODULES), task_type="CAUSAL_LM")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(task.files.model, dtype=dtype),
        lora,
        autocast_adapter_dtype=task.options.get("autocast_adapter_dtype", True),
    )
    rows = read_rows(task.files.rows)
    dataset = Dataset.from_list(
        [
            {
                "input_ids": list(row.ids),
                "attention_mask": [1] * len(row.ids),
                "labels": [token if target else -100 for token, target in zip(row.ids, row.supervised, strict=True)],
            }
            for row in rows
        ]
    )
    Trainer(
        model,
        arguments_of(task),
        train_dataset=dataset,
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(task.files.model)),
        callbacks=[GateCallback(gate, lambda: account((row["input_ids"], [label != -100 for label in row["labels"]]) for row in dataset))],
    ).train()


if __name__ == "__main__":
    main()

"""Tiny models, rows and jobs for the tests of training: nothing is mocked, everything is small."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from luthier.core import jsonl
from luthier.core.hardware import this_machine
from luthier.core.progress import Silent
from luthier.data.prepare import prepare
from luthier.data.store import Prepared, RowWriter, TokenRow, TokenRows
from luthier.data.survey import PreparedWorkload
from luthier.plan.layout import Task, place_of
from luthier.plan.plan import Facts, Plan, make
from luthier.plan.shape import shape_of
from luthier.plan.speed import Range, Rate
from luthier.recipe.schema import Recipe
from luthier.runs.store import RunFolder
from luthier.runs.workload import MicroBatchSize
from luthier.train.batch import MicroBatch, collate
from luthier.train.checkpoint import State
from luthier.train.loop import fit
from luthier.train.precision import Precision
from luthier.train.run import TrainingJob, _rehearse, _set_up
from luthier.train.source import FromPrepared
from luthier.train.step import train_step
from tests.data.families import family

VOCABULARY = 96
CPU = torch.device("cpu")
FLOAT32 = Precision.of(torch.float32, CPU)
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}


def tiny_model(name: str = "qwen3", *, vocabulary: int = VOCABULARY, tied: bool = True, **changed: Any) -> PreTrainedModel:
    """Random weights of a Qwen3, a Qwen3-MoE or a Llama of two layers, in float32; large enough for losses to differ between rows."""
    shape = {**SHAPE, "vocab_size": vocabulary, "tie_word_embeddings": tied, "initializer_range": 0.2, **changed}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shape)),
            "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape)),
            "llama": lambda: LlamaForCausalLM(LlamaConfig(**shape)),
        }[name]()


def ragged_rows(lengths: Sequence[int] = (5, 30, 12, 7, 21, 9, 16, 11), *, vocabulary: int = VOCABULARY) -> list[TokenRow]:
    """Rows of random ids; each is supervised at a different share of its end, so that averages of averages would show."""
    random = np.random.default_rng(7)
    rows = []
    for place, length in enumerate(lengths):
        supervised = np.zeros(length, np.bool_)
        supervised[max(1, length - 2 - 3 * place) :] = True
        rows.append(TokenRow(ids=random.integers(0, vocabulary, length).astype(np.int32), supervised=supervised))
    return rows


def stored(rows: Sequence[TokenRow], folder: Path, split: str = "train") -> TokenRows:
    """The rows as `prepare` keeps them, memory-mapped."""
    with RowWriter(folder, split) as writer:
        for place, row in enumerate(rows):
            writer.add([row], place)
    return TokenRows(folder, split)


def in_batches(rows: Sequence[TokenRow], size: int, pad_id: int = 0) -> list[MicroBatch]:
    """Micro batches of `size` rows, in order."""
    numbers = range(len(rows))
    return [collate(rows[start : start + size], numbers[start : start + size], CPU, pad_id) for start in range(0, len(rows), size)]


class Keep(torch.optim.Optimizer):
    """Updates nothing and keeps the gradients it was given."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(list(parameters), {})
        self.gradients: list[Tensor] = []

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.gradients = [parameter.grad.clone() for group in self.param_groups for parameter in group["params"]]


def step_gradients(model: nn.Module, batches: Sequence[MicroBatch]) -> tuple[float, list[Tensor]]:
    """Loss and gradients of the first training step, before clipping and without its update."""
    optimizer = Keep([parameter for parameter in model.parameters() if parameter.requires_grad])
    record = train_step(model.train(), optimizer, batches, precision=FLOAT32, max_norm=0.0, seeds=(0, 1))
    return record.loss, optimizer.gradients


@dataclass(frozen=True, slots=True)
class Workshop:
    """A folder with a tiny base model, rows to learn from, and runs."""

    folder: Path

    def base(self) -> Path:
        """A base as it lies on the hub: config, safetensors, tokenizer with a ChatML template."""
        path = self.folder / "base"
        if not path.exists():
            tokenizer = family("chatml")
            tiny_model(vocabulary=len(tokenizer.pretrained)).save_pretrained(path)
            tokenizer.save(path)
        return path

    def mixture(self) -> Path:
        """The same as a mixture of experts."""
        path = self.folder / "mixture"
        if not path.exists():
            tokenizer = family("chatml")
            experts = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
            tiny_model("qwen3_moe", vocabulary=len(tokenizer.pretrained), **experts).save_pretrained(path)
            tokenizer.save(path)
        return path

    def data(self, num_rows: int) -> Path:
        """Questions with one-word answers."""
        path = self.folder / f"rows-{num_rows}.jsonl"
        words = ["Paris", "yes", "four", "sunny", "helpful"]
        if not path.exists():
            for place in range(num_rows):
                question = f"What is {'the ' * (place % 7)}question number {place}?"
                answer = words[place % len(words)] * (1 + place % 3)
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                jsonl.append(path, {"messages": turns})
        return path

    def recipe(self, num_rows: int = 30, **sections: Any) -> Recipe:
        """A recipe over these rows: 24 to train in steps of 4, some to validate; `sections` are merged into it, base `mixture` is ours."""
        fields: dict[str, Any] = {
            "name": "tiny",
            "seed": 3,
            "model": {"base": str(self.base()), "dtype": "float32"},
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
            "data": {
                "sources": [{"path": str(self.data(num_rows))}],
                "split": {"train": 0.8, "validation": 0.2, "test": 0},
                "split_method": "exact",
            },
            "training": {"max_steps": 12, "global_batch_size": 4, "learning_rate": 1e-2, "micro_batch_size": 2},
            "checkpoints": {"eval_steps": 6, "save_steps": 5, "early_stopping_patience": "off"},
        }
        for name, value in sections.items():
            if name == "model" and value.get("base") == "mixture":
                value = {**value, "base": str(self.mixture())}
            fields[name] = {**fields.get(name, {}), **value} if isinstance(value, dict) and isinstance(fields.get(name), dict) else value
        return Recipe.model_validate(fields)

    def job(self, name: str = "run", *, free_bytes: int = 10**10, **sections: Any) -> TrainingJob:
        """A job in the run folder `name`, with the recipe that `sections` make."""
        recipe = self.recipe(**sections)
        prepared = prepare(recipe, Silent())
        run = RunFolder(self.folder / "runs" / name)
        run.path.mkdir(parents=True, exist_ok=True)
        return TrainingJob(
            plan=plan_of(recipe, prepared, free_bytes),
            prepared=prepared,
            source=FromPrepared(prepared=prepared, seed=recipe.seed),
            tokenizer=family("chatml"),
            folder=run,
            progress=Silent(),
            score=lambda model, step: {},
        )


class Killed(Exception):
    """Stands for a power cut."""


def killed_in_step(job: TrainingJob, step: int) -> MicroBatchSize:
    """Train until this step's gradient is there and its update is not; how the run's rows were divided."""
    loop, plan = _set_up(job)
    _rehearse(job, loop, plan)
    updates = 0

    def die(*_: object) -> None:
        nonlocal updates
        updates += 1
        if updates == step:
            raise Killed

    loop.optimizer.register_step_pre_hook(die)
    with pytest.raises(Killed):
        fit(loop, State())
    return loop.micro_batch


def plan_of(recipe: Recipe, prepared: Prepared, free_bytes: int = 10**10) -> Plan:
    """The plan of a job on this machine, with so much memory and at some rate."""
    host = this_machine()
    task = Task(
        recipe=recipe,
        shape=shape_of(json.loads((Path(recipe.model.base) / "config.json").read_text())),
        workload=PreparedWorkload.of(prepared, recipe.seed, recipe.training.global_batch_size),
        place=replace(place_of("here", host), free_bytes=free_bytes),
    )
    rate = Rate(flops=Range(low=1e9, mid=1e9, high=1e9), source="a test")
    return make(Facts(task=task, data=prepared.summary, host=host, rate=lambda device, setup, survey: rate))

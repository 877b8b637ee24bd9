"""The cells of bench/plan_accuracy.py: small models, rows and training jobs, made here, each measured in a process of its own."""

import gc
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3ForCausalLM

from bench.shapes import Shape, config_of, learn_tokenizer
from luthier.core import jsonl
from luthier.core.hardware import this_machine
from luthier.core.progress import Silent
from luthier.data.prepare import prepare
from luthier.data.store import Prepared, RowWriter, TokenRow, TokenRows
from luthier.data.survey import PreparedWorkload
from luthier.data.tokenizer import load_tokenizer
from luthier.model.load import load_model, resolve_device
from luthier.plan.layout import Task, choose, place_of
from luthier.plan.memory import Memory
from luthier.plan.plan import Facts, Plan, make
from luthier.plan.setup import Engine
from luthier.plan.shape import shape_of
from luthier.plan.speed import Range, Rate
from luthier.recipe.schema import Recipe
from luthier.runs.store import RunFolder
from luthier.train import run
from luthier.train.host import release_freed_memory
from luthier.train.run import TrainingJob
from luthier.train.source import FromPrepared

Lengths = Literal["even", "ragged", "shared"]

ROWS, VALIDATION_ROWS, STEPS, ROWS_PER_STEP = 32, 16, 2, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way to train one model."""

    shape: Shape
    rank: int
    """Of the adapter; 0 trains the whole model."""
    length: int
    """Tokens of the longest row."""
    rows: int
    """Of the longest in a micro batch."""
    dtype: Literal["bfloat16", "float32"]
    checkpointing: bool
    packing: Literal["off", "bins", "tree"]
    lengths: Lengths = "ragged"
    supervised: float = 0.4
    """Share of a row's tokens, at its end."""

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> Self:
        """The cell that `asdict` made these of."""
        return cls(**{**fields, "shape": Shape(**fields["shape"])})

    def __str__(self) -> str:
        size = f"{self.shape.hidden}x{self.shape.layers} V {self.shape.vocabulary // 1000}k"
        what = f"LoRA r {self.rank}" if self.rank else "full"
        share = "" if self.supervised == 0.4 else f", {self.supervised:.0%} targets"
        recompute = ", checkpointing" if self.checkpointing else ""
        return f"{size} {what} {self.dtype} {self.packing} {self.rows} × {self.length} {self.lengths}{share}{recompute}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Memory of a cell's run above what the loaded model takes, in bytes."""

    cell: Cell
    engine: Engine
    peak_at: str
    loaded: int
    """The whole process with the model loaded; on a GPU what torch has reserved."""
    measured: int
    planned: int
    lines: tuple[tuple[str, str, int], ...]
    """Name, kind and bytes of the ledger's lines."""

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> Self:
        """What `to_json` made these of."""
        lines = tuple((name, kind, size) for name, kind, size in fields["lines"])
        known = {name: value for name, value in fields.items() if name != "error"}
        return cls(**{**known, "cell": Cell.of_json(fields["cell"]), "lines": lines})

    def to_json(self) -> dict[str, Any]:
        """As it is kept."""
        return {**asdict(self), "error": self.error}

    @property
    def error(self) -> float:
        """Of the plan, relative; below 0 it said too little."""
        return self.planned / self.measured - 1


def measure(cell: Cell, work: Path) -> Measured:
    """Train the cell here and now, in a process that has done nothing else."""
    job, device = make_job(cell, work), resolve_device()
    loaded: list[int] = []

    def load_and_begin(*asked: Any) -> PreTrainedModel:
        base: PreTrainedModel = load_model(*asked)
        for weight in base.parameters():
            weight.sum()  # pages of a mapped file count once they are touched
        gc.collect()
        release_freed_memory()
        loaded.append(begin_peak(device))
        return base

    setattr(run, "load_model", load_and_begin)  # noqa: B010  between loading and the rest there is no other place to begin
    plan = run.train(job).plan
    peak = peak_bytes(device)
    return Measured(cell=cell, engine=plan.setup.engine, loaded=loaded[0], measured=peak - loaded[0], **_planned(plan.chosen.memory))


def replanned(found: Measured, work: Path) -> Measured:
    """What was measured then, beside what today's code plans for it on this machine: nothing is loaded or trained."""
    cell, folder = found.cell, work / "replanned"
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(cell, folder)
    recipe = recipe_of(cell, folder / "model", folder / "rows.jsonl")
    train, validation = (TokenRows(folder, split) for split in ("train", "validation"))
    workload = PreparedWorkload(train=train, validation=validation, seed=recipe.seed, global_batch_size=ROWS_PER_STEP)
    shape = shape_of(config_of(cell.shape).to_dict())
    task = Task(recipe=recipe, shape=shape, workload=workload, place=place_of("here", this_machine()), engine=found.engine)
    return replace(found, **_planned(choose(task).memory))


def _planned(memory: Memory) -> dict[str, Any]:
    """Of a ledger what is compared: all but the loaded model."""
    lines = tuple((line.name, line.kind, line.bytes) for line in memory.lines if line.kind != "weights" and line.name != "process")
    return {"peak_at": memory.peak_at, "planned": sum(size for _, _, size in lines), "lines": lines}


def begin_peak(device: torch.device) -> int:
    """Bytes resident now (on a GPU reserved), from where `peak_bytes` looks for more."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_reserved()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """The most since `begin_peak`."""
    return torch.cuda.max_memory_reserved() if device.type == "cuda" else _status("VmHWM")


def make_job(cell: Cell, work: Path) -> TrainingJob:
    """A job of two steps, a validation and a save after each."""
    recipe = recipe_of(cell, make_model(cell.shape, work), _questions(work))
    prepared = prepare(recipe, Silent())
    write_rows(cell, prepared.folder)
    folder = RunFolder(work / "runs" / f"{os.getpid()}")
    folder.path.mkdir(parents=True)
    return TrainingJob(
        plan=plan_of(recipe, prepared),
        prepared=prepared,
        source=FromPrepared(prepared=prepared, seed=recipe.seed),
        tokenizer=load_tokenizer(recipe.model),
        folder=folder,
        progress=Silent(),
        score=lambda model, step: {},
    )


def plan_of(recipe: Recipe, prepared: Prepared) -> Plan:
    """The plan of the cell on this machine, at some rate."""
    host = this_machine()
    task = Task(
        recipe=recipe,
        shape=shape_of(json.loads((Path(recipe.model.base) / "config.json").read_text(encoding="utf-8"))),
        workload=PreparedWorkload.of(prepared, recipe.seed, recipe.training.global_batch_size),
        place=place_of("here", host),
    )
    rate = Rate(flops=Range(low=1e11, mid=1e11, high=1e11), source="any")
    return make(Facts(task=task, data=prepared.summary, host=host, rate=lambda device, setup, survey: rate))


def recipe_of(cell: Cell, base: Path, source: Path) -> Recipe:
    """The cell as a recipe, every `auto` that memory depends on said."""
    return Recipe.model_validate(
        {
            "name": "cell",
            "model": {"base": str(base), "dtype": cell.dtype},
            "lora": {"r": cell.rank, "alpha": 2 * cell.rank} if cell.rank else "none",
            "data": {
                "sources": [{"path": str(source)}],
                "split": {"train": 0.5, "validation": 0.5, "test": 0},
                "split_method": "exact",
                "packing": cell.packing,
            },
            "training": {
                "max_steps": STEPS,
                "global_batch_size": ROWS_PER_STEP,
                "micro_batch_size": cell.rows,
                "gradient_checkpointing": cell.checkpointing,
                "learning_rate": 1e-5,
            },
            "checkpoints": {"eval_steps": STEPS // 2, "save_steps": STEPS // 2, "early_stopping_patience": "off"},
        }
    )


def make_model(shape: Shape, work: Path) -> Path:
    """The folder of a model with random bfloat16 weights and a tokenizer, made once."""
    folder = work / "models" / "-".join(map(str, asdict(shape).values()))
    if not folder.exists():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config_of(shape)).to(torch.bfloat16)
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        model.save_pretrained(unfinished)
        learn_tokenizer(["the rows are numbers, so these words are few"], 300).save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def row_lengths(cell: Cell, count: int, seed: int) -> list[int]:
    """Tokens of each row: all the longest, or spread from an eighth of it, one of them the longest."""
    if cell.lengths == "even":
        return [cell.length] * count
    spread = np.random.default_rng(seed).integers(cell.length // 8, cell.length + 1, count)
    return [cell.length, *spread[1:].tolist()]


def make_rows(cell: Cell, count: int, seed: int) -> list[TokenRow]:
    """Rows of random ids; `shared` ones begin in groups of eight with the same half of the longest."""
    random = np.random.default_rng(seed)
    vocabulary, half = cell.shape.vocabulary, cell.length // 2
    rows, prefix = [], np.empty(0, np.int32)
    for place, length in enumerate(row_lengths(cell, count, seed)):
        if place % 8 == 0:
            prefix = random.integers(0, vocabulary, half, np.int32)
        ids = random.integers(0, vocabulary, length, np.int32)
        if cell.lengths == "shared":
            ids[: min(half, length - 8)] = prefix[: length - 8]
        supervised = np.zeros(length, np.bool_)
        supervised[-max(1, round(cell.supervised * length)) :] = True
        rows.append(TokenRow(ids=ids, supervised=supervised))
    return rows


def write_rows(cell: Cell, folder: Path) -> None:
    """The cell's rows in the place of those that were prepared."""
    for split, count, seed in (("train", ROWS, 1), ("validation", VALIDATION_ROWS, 2)):
        with RowWriter(folder, split) as writer:
            for place, row in enumerate(make_rows(cell, count, seed)):
                writer.add([row], place)


def _questions(work: Path) -> Path:
    """A file to prepare; its rows give way to those of the cell."""
    path = work / "rows.jsonl"
    if not path.exists():
        for number in range(8):
            turns = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": "a number"}]
            jsonl.append(path, {"messages": turns})
    return path


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if not found:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024

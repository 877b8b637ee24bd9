"""Seed 001 whole, tiny, for `test_all_at_once.py`: `python -m tests.equivalence.all_at_once FOLDER`, started by torchrun on four ranks.

TP 2 × DP 2, zero2, nf4, an adapter on every linear layer and every expert, dropout, recomputed activations.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from luthier.model.arrive import Bits, store
from luthier.model.division import cut_of
from luthier.model.load import load_model
from luthier.model.mesh import Axis
from luthier.model.tensor import divide
from luthier.plan.setup import Layout
from luthier.recipe.schema import Model
from luthier.runs.store import RunFolder
from luthier.train.checkpoint import State
from luthier.train.loop import _take_step
from luthier.train.ranks import ALONE, Ranks, join, part
from luthier.train.run import _set_up
from tests.equivalence.layouts import ROWS, STEPS, base_of
from tests.train.workshop import CPU, Workshop

LAYOUT = Layout(data=2, tensor=2, shard="zero2")
SECTIONS: dict[str, Any] = {
    "lora": {"r": 4, "alpha": 8, "dropout": 0.05},
    "data": {"packing": "tree"},
    "training": {**ROWS, "micro_batch_size": 2, "gradient_checkpointing": True},
}
DIVIDED = {"parallel": {"data": LAYOUT.data, "shard": LAYOUT.shard, "tensor": LAYOUT.tensor}}


def twin_of(folder: Path, bits: Bits) -> Path:
    """A base of plain numbers: those that two ranks' bytes of the other stand for, part by part."""
    path = folder / "twin"
    if path.exists():
        return path
    plain = base_of(folder, "qwen3_moe")
    whole = load_model(Model(base=str(plain)), bits.dtype, CPU)
    for index in (0, 1):
        round_part(whole, load_model(Model(base=str(plain)), bits.dtype, CPU), bits, Axis(size=2, index=index))
    whole.save_pretrained(path)
    for file in plain.iterdir():
        if not (path / file.name).exists():
            (path / file.name).write_bytes(file.read_bytes())
    return path


def round_part(whole: PreTrainedModel, model: PreTrainedModel, bits: Bits, axis: Axis) -> None:
    """Let a whole model have the numbers that the bytes of one rank's part stand for; `model` is the same one, and is used up."""
    divide(model, axis)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    forms = store(model, bits)
    for name, form in forms.items():
        rows = model.get_parameter(name).view(-1, form.num_bytes)
        numbers = torch.stack([form.matrix(row) for row in rows]).view(shapes[name])
        weight, cut = whole.get_parameter(name).data, cut_of(model, name)
        if cut is None:
            weight.copy_(numbers)
            continue
        dim, parts = cut[0].dim, cut[0].parts
        shares = weight.unflatten(dim, (parts, axis.size, -1)).select(dim - 1, axis.index)  # type: ignore[no-untyped-call]
        shares.copy_(numbers.unflatten(dim, (parts, -1)))  # type: ignore[no-untyped-call]


def trained(folder: Path, name: str, ranks: Ranks, sections: dict[str, Any]) -> list[list[float]]:
    """Loss and gradient norm of each step."""
    job = Workshop(folder).job(name, **SECTIONS, **sections)
    loop, plan = _set_up(replace(job, ranks=ranks, folder=RunFolder(job.folder.path, read_only=not ranks.first)))
    assert plan.setup.engine == "fused"
    loop.model.train()
    state, found = State(), []
    for _ in range(STEPS):
        state, line = _take_step(loop, state)
        found.append([line.loss, line.grad_norm])
    return found


def alone(folder: Path, bits: Bits) -> list[list[float]]:
    """By one process, with the twin."""
    return trained(folder, "one", ALONE, {"model": {"base": str(twin_of(folder, bits)), "dtype": "float32"}})


def main() -> None:
    """All of it."""
    folder = Path(sys.argv[1])
    ranks = join(LAYOUT)
    model = {"base": str(base_of(folder, "qwen3_moe")), "dtype": "float32", "quantization": "nf4"}
    found = trained(folder, "four", ranks, {"model": model, **DIVIDED})
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found))
    part(ranks)


if __name__ == "__main__":
    main()

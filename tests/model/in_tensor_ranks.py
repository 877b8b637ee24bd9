"""What ranks that divide each matrix do for `test_tensor.py`: `python -m tests.model.in_tensor_ranks FOLDER`, started by torchrun.

Each rank also computes what one process does, with a whole model of its own, and leaves in FOLDER/rank-N.json how far apart they are.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.model.dropout import draw
from luthier.model.fuse import fuse
from luthier.model.mesh import Pieces
from luthier.model.tensor import as_if_whole, connect, divide
from luthier.plan.setup import Layout
from luthier.train.batch import MicroBatch
from luthier.train.objective import nll_sum
from luthier.train.ranks import Ranks, join, part
from tests.model.zoo import LONGEST, adapted, gradients, in_packs, shared_rows, tiny

CASES = {
    f"{family} {how} {packing}": (family, how, packing)
    for family in ("llama", "qwen3", "qwen3_moe")
    for how in ("lora", "full")
    for packing in ("tree", "bins", "off")
}
LORA = {"lora": {"dropout": 0.1}, "full": {}}


def trained(model: PreTrainedModel, how: str, packing: str) -> nn.Module:
    """As a run prepares it."""
    if how != "full":
        with as_if_whole(model):
            adapter = adapted(model, **LORA[how])
    pieces = connect(model if how == "full" else adapter)
    made = model if how == "full" else adapter
    fusion = fuse(made, pack=packing != "off", longest=LONGEST)
    made.pieces, made.engine = pieces, fusion.engine
    return made.train()


def step(model: nn.Module, batches: Sequence[MicroBatch]) -> float:
    """The loss; leaves its gradient in the model."""
    num_targets, loss = sum(batch.num_targets for batch in batches), 0.0
    for batch in batches:
        draw(model, batch.keys_A, batch.needed_S, (3, 1))
        part = nll_sum(model, batch) / num_targets
        part.backward()
        loss += part.item()
    return loss


def case(ranks: Ranks, family: str, how: str, packing: str, **changed) -> dict[str, Any]:
    batches = in_packs(shared_rows(), packing)
    whole = trained(tiny(family, **changed), how, packing)
    loss = step(whole, batches)
    expected = gradients(whole)
    base = tiny(family, **changed)
    divide(base, ranks.mesh.tensor)
    model = trained(base, how, packing)
    ranks = replace(ranks, pieces=model.pieces)
    found_loss = step(model, batches)
    ranks.sum_gradients([p for p in model.parameters() if p.requires_grad])
    norm = ranks.norm([p for p in model.parameters() if p.requires_grad]).item()
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    apart = {}
    found = gradients(model)
    for name, e in expected.items():
        piece = model.pieces.get(names[name])
        if piece is not None:
            if "experts" in name and piece.divided:
                continue
            for dim, (o, n) in enumerate(zip(piece.offsets, found[name].shape)):
                e = e.narrow(dim, o, n)
        apart[name] = ((found[name] - e).norm() / e.norm()).item()
    total = torch.stack([g.norm() for g in expected.values()]).norm().item()
    return {"engine": [whole.engine, model.engine], "loss": [loss, found_loss], "norm": [total, norm], "apart": apart}


def main() -> None:
    folder = Path(sys.argv[1])
    ranks = join(Layout(tensor=2))
    found = {}
    for name, c in CASES.items():
        found[name] = case(ranks, *c)
        if ranks.first:
            f = found[name]
            worst = max(f["apart"], key=f["apart"].get)
            print(name, f["engine"], f["loss"], f["norm"], len(f["apart"]), worst, f["apart"][worst], flush=True)
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found))
    part(ranks)


if __name__ == "__main__":
    main()

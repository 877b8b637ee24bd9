"""What two ranks that divide each matrix do for `test_tensor.py`: `python -m tests.model.in_tensor_ranks FOLDER`, started by torchrun.

Each also computes what one process does, with a whole model of its own, and leaves in FOLDER/rank-N.json how far apart they are.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from luthier.model.arrive import Bits, store
from luthier.model.dropout import draw
from luthier.model.fuse import fuse
from luthier.model.mesh import Axis, Mesh, Piece
from luthier.model.place import Placed, place
from luthier.model.tensor import as_if_whole, divide
from luthier.plan.setup import Engine, Layout
from luthier.train.batch import MicroBatch
from luthier.train.objective import nll_sum
from luthier.train.ranks import Ranks, join, part
from tests.equivalence.all_at_once import round_part
from tests.model.zoo import LONGEST, adapted, gradients, in_packs, shared_rows, tiny
from tests.plan.test_models_table import TINY_DELTA, TINY_EXPERTS

TENSOR = Layout(tensor=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, how it is trained, and over which batches."""

    family: str
    changed: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] | None = field(default_factory=lambda: {"dropout": 0.1})
    packing: str = "off"
    recompute: bool = False
    bits: Literal["none", "int8", "nf4", "fp4"] = "none"
    """Of the base; one process has a twin of plain numbers, those that the ranks' bytes stand for."""
    dtype: torch.dtype = torch.float32


BIASED = {"attention_bias": True, "mlp_bias": True}
HYBRID = {**TINY_DELTA, "num_hidden_layers": 4}
CASES = {
    f"{family} {how} {packing}": Case(family=family, lora=lora, packing=packing)
    for family in ("llama", "qwen3", "qwen3_moe")
    for how, lora in (("lora", {"dropout": 0.1}), ("full", None))
    for packing in ("tree", "bins", "off")
} | {
    "llama lora recomputed": Case(family="llama", packing="tree", recompute=True),
    "qwen3_moe full recomputed": Case(family="qwen3_moe", lora=None, packing="bins", recompute=True),
    "qwen3 lora some": Case(family="qwen3", lora={"target_modules": ("q_proj", "down_proj")}, packing="bins"),
    "mistral lora tree": Case(family="mistral", packing="tree"),
    "qwen2 lora tree": Case(family="qwen2", packing="tree"),
    "phi3 lora": Case(family="phi3"),
    "phi3 full": Case(family="phi3", lora=None),
    "qwen3_5 full": Case(family="qwen3_5_text", changed=HYBRID, lora=None),
    "qwen3_5_moe lora": Case(family="qwen3_5_moe_text", changed={**HYBRID, **TINY_EXPERTS}),
    "qwen3 lora nf4": Case(family="qwen3", packing="tree", bits="nf4"),
    "qwen3_moe lora nf4": Case(family="qwen3_moe", packing="tree", bits="nf4"),
    "qwen3_moe lora int8 padded": Case(family="qwen3_moe", bits="int8"),
    "llama lora fp4 recomputed": Case(family="llama", packing="bins", bits="fp4", recompute=True),
    "qwen3 lora bfloat16": Case(family="qwen3", packing="tree", dtype=torch.bfloat16),
    "llama lora float64": Case(family="llama", dtype=torch.float64),
    "qwen3 full float64": Case(family="qwen3", lora=None, dtype=torch.float64),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainee:
    """A model as a run sets it up."""

    placed: Placed
    engine: Engine


def trainee(case: Case, mesh: Mesh) -> Trainee:
    """Whole in a mesh of one, else this rank's part."""
    base = tiny(case.family, case.dtype, **case.changed)
    if case.recompute:
        base.activation_checkpointing_enable({"use_reentrant": False})
    divide(base, mesh.tensor)
    if case.bits != "none" and mesh.tensor.size > 1:
        store(base, Bits(kind=case.bits, dtype=case.dtype))
    elif case.bits != "none":
        for index in (0, 1):
            round_part(
                base, tiny(case.family, case.dtype, **case.changed), Bits(kind=case.bits, dtype=case.dtype), Axis(size=2, index=index)
            )
    with as_if_whole(base):
        model: PreTrainedModel | PeftModel = base if case.lora is None else adapted(base, **case.lora)
    placed = place(model, TENSOR, mesh)
    fusion = fuse(placed.model, pack=case.packing != "off", longest=LONGEST)
    placed.model.train()
    return Trainee(placed=placed, engine=fusion.engine)


def loss_of(model: PreTrainedModel | PeftModel, batches: Sequence[MicroBatch]) -> float:
    """The mean over supervised tokens, with dropout; leaves its gradient in the model."""
    num_targets, loss = sum(batch.num_targets for batch in batches), 0.0
    for batch in batches:
        draw(model, batch.keys_A, batch.needed_S, (3, 1))
        mean = nll_sum(model, batch) / num_targets
        mean.backward()  # type: ignore[no-untyped-call]
        loss += mean.item()
    return loss


def own(whole: Tensor, part: Tensor, piece: Piece | None) -> Tensor:
    """What a rank that holds `part` should have of a whole tensor."""
    if piece is None:
        return whole
    boxes = [whole[tuple(slice(at, at + size) for at, size in zip(offsets, box.shape, strict=True))] for box, offsets in piece.boxes(part)]
    return torch.cat(boxes, dim=-2) if len(boxes) > 1 else boxes[0]


class Divided:
    """One rank's part in every scene."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def gradients(self) -> dict[str, Any]:
        return {name: self.compared(case) for name, case in CASES.items()}

    def compared(self, case: Case) -> dict[str, Any]:
        """Loss, norm and gradients of one process beside those of the ranks."""
        batches = in_packs(shared_rows(), case.packing)
        one, two = trainee(case, Mesh()), trainee(case, self.ranks.mesh)
        ranks = replace(self.ranks, pieces=two.placed.pieces)
        losses = [loss_of(one.placed.model, batches), loss_of(two.placed.model, batches)]
        ranks.sum_gradients(two.placed.trained.values())
        norms = [replace(self.ranks, pieces={}).norm(one.placed.trained.values()), ranks.norm(two.placed.trained.values())]
        expected, found = gradients(one.placed.model), gradients(two.placed.model)
        expected = {name: own(expected[name], found[name], ranks.pieces.get(weight)) for name, weight in two.placed.trained.items()}
        apart = {name: ((found[name] - other).norm() / other.norm()).item() for name, other in expected.items()}
        whole = [
            torch.cat([gradient.flatten() for gradient in each.values()]) for each in (found, {name: expected[name] for name in found})
        ]
        return {
            "engines": [one.engine, two.engine],
            "loss": losses,
            "norm": [norm.item() for norm in norms],
            "apart": apart,
            "apart in all": ((whole[0] - whole[1]).norm() / whole[1].norm()).item(),
            "numbers": [sum(weight.numel() for weight in each.placed.trained.values()) for each in (one, two)],
        }

    def drawn(self) -> dict[str, bool]:
        """Whether a new adapter is the very one that one process draws, part by part."""
        same = {}
        for case in (CASES["llama lora tree"], CASES["qwen3_moe lora tree"]):
            one, two = trainee(case, Mesh()).placed, trainee(case, self.ranks.mesh).placed
            for name, weight in two.trained.items():
                same[f"{case.family} {name}"] = torch.equal(weight, own(one.trained[name], weight, two.pieces.get(weight)))
        return same

    def generated(self) -> dict[str, list[list[int]]]:
        """Answers by one process and by the ranks."""
        ids = torch.arange(20).view(2, 10)
        answers = {}
        for name in ("qwen3 lora tree", "qwen3_moe lora tree", "qwen3_5 full"):
            models = [trainee(CASES[name], mesh).placed.model.eval() for mesh in (Mesh(), self.ranks.mesh)]
            with torch.inference_mode():
                found = [model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0) for model in models]
            answers[name] = [ids_BT.tolist() for ids_BT in found]
        return answers


def main() -> None:
    """All scenes, in one group."""
    folder = Path(sys.argv[1])
    ranks = join(TENSOR)
    divided = Divided(ranks)
    found = {scene.__name__: scene() for scene in (divided.gradients, divided.drawn, divided.generated)}
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found))
    part(ranks)


if __name__ == "__main__":
    main()

"""The model where its ranks hold it: parallelism is put on from outside, after the adapter and before the engine."""

from dataclasses import dataclass
from typing import Literal

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from luthier.model.mesh import Mesh, Pieces
from luthier.model.pipeline import cut, exchanged
from luthier.model.shard import shard
from luthier.model.tensor import connect
from luthier.plan.setup import Layout
from luthier.plan.weights import Stage

Trained = dict[str, nn.Parameter]
"""What this rank updates, by the names that the whole model has for it: parameters, or its pieces of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A model of which this rank holds its part; its `forward` and `backward` are called by all ranks that divide it, together."""

    model: PreTrainedModel | PeftModel
    trained: Trained
    pieces: Pieces
    """Of what is trained."""


def place(model: PreTrainedModel | PeftModel, layout: Layout, mesh: Mesh, stage: Stage | Literal["all"] = "all") -> Placed:
    """Leave of the model what this rank holds: of its layers those of the stage; replicas that divide nothing (`shard: none`) have all.

    Matrices are divided before they are adapted (`luthier.model.tensor`), and here their parts are connected.
    """
    pieces = connect(model)
    if stage != "all" and mesh.pipeline.size > 1:
        pieces = cut(model, stage, mesh.pipeline, pieces)
    placed = Placed(model=model, trained=trained_of(model), pieces=pieces)
    if layout.shard != "none" and mesh.data.size > 1:
        trained, pieces = shard(placed.model, layout.shard, mesh, placed.pieces)
        exchanged(placed.model, {placed.trained[name]: parameter for name, parameter in trained.items()})
        placed = Placed(model=placed.model, trained=trained, pieces=pieces)
    return placed


def trained_of(model: nn.Module) -> Trained:
    """Every parameter of an undivided model that is trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

"""The model where its ranks hold it: parallelism is put on from outside, after the adapter and before the engine."""

import math
from dataclasses import dataclass

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from luthier.model.mesh import Mesh, Pieces
from luthier.model.shard import shard
from luthier.model.tensor import connect
from luthier.plan.setup import Layout

Trained = dict[str, nn.Parameter]
"""What this rank updates, by the names that the whole model has for it: parameters, or its pieces of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A model of which this rank holds its part; its `forward` and `backward` are called by all ranks that divide it, together."""

    model: PreTrainedModel | PeftModel
    trained: Trained
    pieces: Pieces
    """Of what is trained."""

    @property
    def num_trained(self) -> int:
        """Numbers of the trained parameters that this rank has a part of, whole."""
        return sum(math.prod((self.pieces.get(parameter) or parameter).shape) for parameter in self.trained.values())


def place(model: PreTrainedModel | PeftModel, layout: Layout, mesh: Mesh) -> Placed:
    """Leave of the model what this rank holds. Replicas that divide nothing (`shard: none`) hold all of it, and it stays as it is.

    Its matrices are divided before it is adapted (`luthier.model.tensor`), and here their parts are connected.
    """
    placed = Placed(model=model, trained=trained_of(model), pieces=connect(model))
    # the pipeline comes here: what is left of the model is divided among the replicas
    if layout.shard != "none" and mesh.data.size > 1:
        trained, pieces = shard(placed.model, layout.shard, mesh, placed.pieces)
        placed = Placed(model=placed.model, trained=trained, pieces=pieces)
    return placed


def trained_of(model: nn.Module) -> Trained:
    """Every parameter of an undivided model that is trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

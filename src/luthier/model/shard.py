"""Replicas that divide what they would all hold: FSDP2, layer by layer (arXiv:1910.02054, 2304.11277).

zero2   gradients and optimizer state are divided; weights are whole while a micro batch is computed, frozen ones always
zero3   weights are divided too, and a layer's are put together while it is computed
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier.model.adapt import base_of
from luthier.model.mesh import Mesh, Piece, Pieces

WITHIN = "within"


def shard(
    model: PreTrainedModel | PeftModel, how: Literal["zero2", "zero3"], mesh: Mesh, pieces: Pieces
) -> tuple[dict[str, nn.Parameter], Pieces]:
    """Divide a model among the replicas; what of each trained parameter this rank updates. `pieces` are those divided otherwise before."""
    assert mesh.devices is not None
    base, devices = base_of(model), mesh.devices["data"]
    kept = {parameter for parameter in model.parameters() if how == "zero2" and not parameter.requires_grad}
    before = {name: (parameter, pieces.get(parameter)) for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module in (*layers, base):
        fully_shard(
            module,
            mesh=devices,
            reshard_after_forward=how == "zero3",
            shard_placement_fn=lambda parameter: Shard(_dimension(parameter, mesh.data.size)),
            ignored_params=kept,
        )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return {}, {}


def _dimension(parameter: Tensor, replicas: int) -> int:
    """The first that replicas can divide evenly, or else the first of all."""
    return next((dimension for dimension, size in enumerate(parameter.shape) if size % replicas == 0), 0)

"""What ranks hold of the trained weights, put together on the first of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from luthier.model.place import Trained
from luthier.train.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """Of a box: whose it is, and where it belongs."""

    rank: int
    name: str
    number: int
    """Which of those that the rank has of the tensor."""
    shape: list[int]
    offsets: list[int]
    sizes: list[int]


def gathered(trained: Trained, ranks: Ranks) -> dict[str, Tensor]:
    """Every trained weight whole, on rank 0; nothing on the others.

    One box at a time is sent, through the host: beside what rank 0 holds itself, it needs memory for the whole once, and a box. What it
    holds whole is not copied.
    """
    whole: dict[str, Tensor] = {}
    own = {name: [box for box, _ in ranks.piece(parameter).boxes(parameter.detach())] for name, parameter in trained.items()}
    for told in _boxes(trained, ranks):
        sizes = torch.Size(told.sizes)
        if told.rank == ranks.rank:
            box = own[told.name][told.number]
            if not ranks.first:
                dist.send(box.cpu().contiguous(), dst=0)
                continue
        elif ranks.first:
            box = torch.empty(sizes)
            with ranks.waiting():
                dist.recv(box, src=told.rank)
        else:
            continue
        if told.sizes == told.shape:
            whole[told.name] = box
            continue
        if told.name not in whole:
            whole[told.name] = torch.empty(told.shape)
        whole[told.name][tuple(slice(at, at + size) for at, size in zip(told.offsets, sizes, strict=True))] = box
    return whole


def _boxes(trained: Trained, ranks: Ranks) -> Iterator[_Told]:
    """All that there are, in the same order on every rank."""
    own: list[dict[str, Any]] = []
    for name, parameter in trained.items():
        if ranks.owns(parameter) and parameter.numel():
            piece = ranks.piece(parameter)
            for number, (box, offsets) in enumerate(piece.boxes(parameter)):
                place = {"shape": list(piece.shape), "offsets": list(offsets), "sizes": list(box.shape)}
                own.append({"name": name, "number": number} | place)
    for rank, boxes in enumerate(ranks.every(own)):
        yield from (_Told(rank=rank, **box) for box in boxes)

"""What of a checkpoint is one rank's: its boxes of the trained weights, and of the optimizer's state for them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from luthier.core import files
from luthier.core.errors import RunError
from luthier.model.place import Trained
from luthier.train import boxes
from luthier.train.boxes import OTHER_NAME, Held, Writer, Written
from luthier.train.optim import LARGEST, fits, moments_of, put_back, tensors_of
from luthier.train.ranks import ALONE, Ranks

WEIGHTS, OPTIMIZER = "adapter", "optimizer"
"""Stems of the files' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What this rank writes, and as which of the ranks that write; nothing where others hold the same numbers or there are none."""

    weights: Mapping[str, Held]
    moments: Mapping[str, Held]
    writer: Writer

    @classmethod
    def of(cls, trained: Trained, optimizer: torch.optim.Optimizer, ranks: Ranks) -> "Contents":
        """That of this rank."""
        own = {name: parameter for name, parameter in trained.items() if ranks.owns(parameter) and parameter.numel()}
        writing = ranks.any([bool(own) and rank == ranks.rank for rank in range(ranks.size)])
        moments = {}
        for name, parameter in own.items():
            held = _held(parameter, ranks)
            for key, value in tensors_of(optimizer.state.get(parameter, {})).items():
                if key in moments_of(optimizer):
                    moments[f"{key}/{name}"] = Held(tensor=value, piece=held.piece)
                elif not any(held.piece.offsets):  # of all of the tensor, written with its first box
                    moments[f"{key}/{name}"] = Held.whole(value)
        return cls(
            weights={name: _held(parameter, ranks) for name, parameter in own.items()},
            moments=moments,
            writer=Writer(index=sum(writing[: ranks.rank]), count=max(1, sum(writing))),
        )

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(held.tensor.nbytes for held in (*self.weights.values(), *self.moments.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the files that this rank writes."""
        return (self.writer.name(WEIGHTS), self.writer.name(OPTIMIZER)) if self.weights else ()

    def write(self, folder: Path) -> None:
        """Write them, and flush them to disk."""
        for name, tensors in zip(self.names, (self.weights, self.moments), strict=False):
            boxes.write(folder / name, tensors)
            files.sync(folder / name)


def names_among(names: Iterable[str]) -> set[str]:
    """The files of weights and optimizer that belong together, as the names of some of them say."""
    found = list(names)
    return boxes.names_of(WEIGHTS, found) | boxes.names_of(OPTIMIZER, found)


def load_weights(folder: Path, trained: Trained, ranks: Ranks = ALONE) -> None:
    """Copy a checkpoint's weights into what this rank holds of them, read from the boxes that whichever ranks wrote."""
    with boxes.opened(folder, WEIGHTS) as written, ranks.agreeing():
        own = {name: _held(parameter, ranks) for name, parameter in trained.items()}
        _expect(written, own, ranks, "the checkpoint was made of another model or adapter")
        for name, held in own.items():
            written.read(name, held)


def load_optimizer(folder: Path, trained: Trained, optimizer: torch.optim.Optimizer, ranks: Ranks = ALONE) -> None:
    """Put a checkpoint's optimizer state into this rank's optimizer. A parameter that was never updated has none."""
    names = {parameter: name for name, parameter in trained.items()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    other = "the optimizer's state is of another model or adapter"
    with boxes.opened(folder, OPTIMIZER) as written, ranks.agreeing():
        state = [_room(names[parameter], parameter, written, optimizer) for parameter in order]
        own: dict[str, Held] = {}
        for parameter, tensors in zip(order, state, strict=True):
            piece = _held(parameter, ranks).piece
            for key, tensor in tensors.items():
                own[f"{key}/{names[parameter]}"] = Held(tensor=tensor, piece=piece) if key in moments_of(optimizer) else Held.whole(tensor)
        _expect(written, own, ranks, other)
        for name, held in own.items():
            written.read(name, held)
        if not all(fits(tensors, optimizer, parameter.shape) for parameter, tensors in zip(order, state, strict=True) if tensors):
            raise RunError(other, where=str(folder), change=OTHER_NAME)
    put_back(optimizer, state)


def _room(name: str, parameter: Tensor, written: Written, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Empty tensors for what was written of a parameter's state."""
    keys = {key for entry in written.boxes for key, _, of in [entry.partition("/")] if of == name}
    dtype = torch.uint8 if keys >= LARGEST else torch.float32
    return {
        key: torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        if key in moments_of(optimizer)
        else torch.empty(written.shape(f"{key}/{name}"), device=parameter.device if key in LARGEST else "cpu")
        for key in sorted(keys)
    }


def _expect(written: Written, own: Mapping[str, Held], ranks: Ranks, other: str) -> None:
    """Raise RunError unless what is written is all that the ranks have, and of the same shapes."""
    fitting = all(name in written.boxes and written.shape(name) == held.piece.shape for name, held in own.items())
    if not all(ranks.any([name in own for name in sorted(written.boxes)])) or not fitting:
        raise RunError(other, where=str(written.folder), change=OTHER_NAME)


def _held(parameter: Tensor, ranks: Ranks) -> Held:
    return Held(tensor=parameter.detach(), piece=ranks.piece(parameter))

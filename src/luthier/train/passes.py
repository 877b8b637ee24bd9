"""Micro batches through the model, forward and backward: through all of it, or through this rank's stage of a pipeline.

A whole model is a pipeline of one stage: each micro batch goes forward, and at once backward. Of p stages, stage s takes p - 1 - s more of
them forward before the first goes backward, and from then on one forward, one backward, in turns (1F1B; PipeDream, arXiv:1806.03377):

    stage 0   F0 F1 F2       B0 F3 B1 F4 B2    B3    B4       All work at once, but while the pipeline fills and drains, which is
    stage 1      F0 F1    B0 F2 B1 F3 B2 F4 B3    B4          (p - 1) / (m + p - 1) of the time of m micro batches. Stage s keeps
    stage 2         F0 B0 F1 B1 F2 B2 F3 B3 F4 B4             activations of at most p - s of them.

Every stage has the same micro batches, and so knows the shape of what it gets. One that is asked to end, or has no memory, goes on to
exchange zeros until the others are through: none waits for it, and all learn of it after the pass (`luthier.train.step`).
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from luthier.data.order import Indices
from luthier.model.dropout import draw, seed_of
from luthier.model.mesh import Axis
from luthier.model.peak import is_out_of_memory
from luthier.model.pipeline import AFTER, BEFORE, Neighbours, Part, hidden_states, part_of
from luthier.model.shard import evaluating
from luthier.train.batch import MicroBatch
from luthier.train.objective import nll, nll_sum
from luthier.train.precision import Precision


class Stopped(Exception):
    """What was begun was broken off, because a signal asks to end; nothing was updated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a stage does next: take a micro batch forward, or backward."""

    batch: int
    forward: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """The loss of each target of a micro batch, and of which rows they are (`MicroBatch`)."""

    nll_N: Tensor
    rows_M: Indices
    targets_M: Indices


def turns(axis: Axis, num_batches: int) -> Iterator[Turn]:
    """The turns of a stage, in order."""
    ahead = min(axis.size - 1 - axis.index, num_batches)
    yield from (Turn(batch=index, forward=True) for index in range(ahead))
    for index in range(num_batches - ahead):
        yield Turn(batch=ahead + index, forward=True)
        yield Turn(batch=index, forward=False)
    yield from (Turn(batch=index, forward=False) for index in range(num_batches - ahead, num_batches))


def backward(model: nn.Module, batches: Sequence[MicroBatch], precision: Precision, *, seeds: tuple[int, int], num_targets: int) -> Tensor:
    """Leave the gradient of these rows' loss, divided by `num_targets`, in the parameters; that loss, where this stage sees it.

    `seeds` is (seed, step), from which dropout follows. Raises Stopped where a rank is to end, and what torch does where memory is short.
    """
    loss = torch.zeros((), device=precision.device)
    precision.scaler.scale(loss)  # which makes the scaler's state, also where no loss is ever seen
    step = _Step(model=model, batches=batches, precision=precision, seeds=seeds, num_targets=num_targets, loss=loss)
    line = _Line.of(model, precision)
    for turn in turns(line.axis, len(batches)):
        compute = step.forward if turn.forward else step.backward
        line.turn(batches[turn.batch], functools.partial(compute, turn.batch), forward=turn.forward)
        if line.broken:
            step.flying.clear()
    line.end(add_up=len(batches) > 0)
    return step.loss


def forward(model: nn.Module, batches: Iterable[MicroBatch], precision: Precision) -> list[Seen]:
    """Each micro batch's losses, without dropout and gradient, where this stage sees them. Raises as `backward` does."""
    seen: list[Seen] = []
    line = _Line.of(model, precision)
    with evaluating(model), precision.autocast():
        for batch in batches:
            line.turn(batch, functools.partial(_evaluated, model, batch, precision, seen), forward=True)
        line.end()
    return seen


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """What torch's generator starts from in one micro batch, for a model with dropout of its own; the adapter's goes by token."""
    return seed_of(f"{seed}/{step}/{micro_batch}")


def _evaluated(model: nn.Module, batch: MicroBatch, precision: Precision, seen: list[Seen], hidden_BTD: Tensor | None) -> Tensor | None:
    """What the next stage goes on with; on the last, the losses are added to what is seen."""
    if precision.ranks.stops():
        raise Stopped
    batch, part = replace(batch, hidden_BTD=hidden_BTD), part_of(model)
    if part and not part.stage.last:
        return hidden_states(model, **batch.inputs())
    seen.append(Seen(nll_N=nll(model, batch), rows_M=batch.rows_M, targets_M=batch.targets_M))
    return None


@dataclass(slots=True, kw_only=True)
class _Step:
    """A step's micro batches, and those of them that are on their way."""

    model: nn.Module
    batches: Sequence[MicroBatch]
    precision: Precision
    seeds: tuple[int, int]
    num_targets: int
    loss: Tensor
    flying: dict[int, tuple[Tensor | None, Tensor]] = field(default_factory=dict)
    """By micro batch, what came in, and what was made of it."""

    def forward(self, index: int, hidden_BTD: Tensor | None) -> Tensor | None:
        """What the next stage goes on with; the last adds to the loss."""
        ranks, part = self.precision.ranks, part_of(self.model)
        if ranks.stops():
            raise Stopped
        torch.manual_seed(dropout_seed(*self.seeds, ranks.mesh.data.index + index * ranks.mesh.data.size))
        self._draw(index)
        batch = replace(self.batches[index], hidden_BTD=hidden_BTD if hidden_BTD is None else hidden_BTD.requires_grad_())
        with self.precision.autocast():
            if part and not part.stage.last:
                given = hidden_states(self.model, **batch.inputs())
                self.flying[index] = hidden_BTD, given
                return given.detach()
            loss = (batch.objective or nll_sum)(self.model, batch) / self.num_targets
        self.flying[index] = hidden_BTD, self.precision.scaler.scale(loss)
        self.loss += loss.detach()
        return None

    def backward(self, index: int, gradient_BTD: Tensor | None) -> Tensor | None:
        """The gradient of what came in."""
        hidden_BTD, given = self.flying.pop(index)
        self._draw(index)  # activations and dropped inputs may be computed again
        if given.requires_grad:  # an adapter may be on other stages' layers only
            given.backward(gradient_BTD)  # type: ignore[no-untyped-call]
        return None if hidden_BTD is None else hidden_BTD.grad

    def _draw(self, index: int) -> None:
        batch = self.batches[index]
        draw(self.model, batch.keys_A, batch.needed_S, self.seeds)


@dataclass(slots=True, kw_only=True)
class _Line:
    """A stage in turn: it receives, computes, and sends with the next turn's receiving. Alone it computes only."""

    part: Part | None
    neighbours: Neighbours | None
    divided: bool
    """Whether other ranks compute this stage's layers with it, and would wait for it in the middle of one."""
    broken: Exception | None = None
    """Why this stage does not compute any more."""
    _outgoing: tuple[int, Tensor] | None = None

    @classmethod
    def of(cls, model: nn.Module, precision: Precision) -> "_Line":
        """That of a model, divided or whole."""
        part = part_of(model)
        return cls(part=part, neighbours=Neighbours(part=part) if part else None, divided=precision.ranks.divided)

    @property
    def axis(self) -> Axis:
        """Of the stages."""
        return self.part.axis if self.part else Axis()

    def turn(self, batch: MicroBatch, compute: Callable[[Tensor | None], Tensor | None], *, forward: bool) -> None:
        """compute(what the neighbour sends), whose result the other neighbour gets."""
        if self.part is None or self.neighbours is None:
            compute(None)
            return
        shape, axis = (*batch.ids_BT.shape, self.part.width_D), self.axis
        source, target = (BEFORE, AFTER) if forward else (AFTER, BEFORE)
        begins, ends = (axis.first, axis.last) if forward else (axis.last, axis.first)
        incoming = self.neighbours.exchange(self._outgoing, None if begins else (source, shape))
        result = None
        if not self.broken:
            try:
                result = compute(incoming)
            except (Stopped, MemoryError, OSError, RuntimeError) as error:
                if not isinstance(error, Stopped) and (self.divided or not is_out_of_memory(error)):
                    raise
                self.broken = error.with_traceback(None)  # which would hold what was computed
        if ends:
            self._outgoing = None
        else:
            zeros = functools.partial(torch.zeros, shape, dtype=self.part.dtype, device=self.part.device)
            self._outgoing = target, zeros() if result is None else result

    def end(self, *, add_up: bool = False) -> None:
        """Let the last message go; `add_up` what several stages have of a gradient. Raises what broke this stage."""
        if self.neighbours:
            self.neighbours.exchange(self._outgoing, None)
            if add_up:
                self.neighbours.add_up_shared()
            self.neighbours.finish()
        if self.broken:
            raise self.broken

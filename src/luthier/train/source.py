"""Where a run's rows come from: prepared ones in an order that follows from the seed, or others, such as answers that are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from luthier.data.order import Indices, rows_of_step
from luthier.data.store import Prepared, Rows
from luthier.model.place import Placed
from luthier.plan.steps import Steps
from luthier.runs.workload import MicroBatchSize
from luthier.train.ahead import Ahead
from luthier.train.batch import MicroBatch, micro_batches
from luthier.train.precision import Precision


class Batches(Protocol):
    """The micro batches of a run's steps, which are taken in order."""

    def take(self, step: int) -> tuple[Indices, list[MicroBatch]]:
        """The rows of a step, by which `Source.origins` knows them, and those micro batches of them that this rank computes."""
        ...

    def told(self) -> Mapping[str, float]:
        """What is to stand in the step's line besides, asked once it is computed."""
        ...

    def reached(self, loss: float) -> str:
        """What a step is judged by, in short, for who looks on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A model that can be trained, and how."""

    placed: Placed
    precision: Precision
    micro_batch: MicroBatchSize
    steps: Steps


class Source(Protocol):
    """Gives a run its rows."""

    @property
    def rows(self) -> Rows:
        """The training rows, or what they can be at most: what a rehearsal and a forecast count with."""
        ...

    def batches(self, ready: Ready) -> Batches:
        """Of a model that is ready."""
        ...

    def origins(self, rows: Sequence[int]) -> list[str]:
        """Where rows come from, for the report of a step that failed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FromPrepared:
    """Prepared rows, in the order of a seed."""

    prepared: Prepared
    seed: int

    @property
    def rows(self) -> Rows:
        """Of the split that is trained on."""
        return self.prepared.rows("train")

    def batches(self, ready: Ready) -> Batches:
        """Made in the background, a step ahead."""
        rows, ranks = self.rows, ready.precision.ranks

        def make(step: int) -> tuple[Indices, list[MicroBatch]]:
            taken = rows_of_step(step, ready.steps.global_batch_size, self.seed, rows)
            return taken, micro_batches(rows, ranks.share(rows, taken), ready.micro_batch, ready.precision.device)

        return Ahead(make=make, last=ready.steps.total)

    def origins(self, rows: Sequence[int]) -> list[str]:
        """File and line of each row's example."""
        examples, index = self.prepared.examples("train"), self.rows.example_index
        return [examples[int(index[row])].origin for row in rows]

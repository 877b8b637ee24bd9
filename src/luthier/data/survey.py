"""What micro batches prepared rows make: the plan's view of them, by dividing the rows of some steps as training will. numpy only."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from luthier.data.order import Indices, epoch_order, padded_batches, rank_shares, rows_of_step, validated_together
from luthier.data.pack import Pack, bins, shared_share, trees
from luthier.data.store import Prepared, Rows
from luthier.runs.workload import Extent, MicroBatchSize, Survey

ROWS_SAMPLED = 512
"""Rows of the first steps that means are taken from: 32 steps of 16. To divide them takes 80 ms."""
STEPS_SHARED = 8
"""Steps whose shared tokens decide between tree and bins."""
EPOCHS_SEARCHED, STEPS_SEARCHED = 4, 2_000
"""Epochs that are searched for the largest micro batch; of padded rows, which must be divided for it, so many steps of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedWorkload:
    """Prepared training and validation rows, in the order that `seed` gives them in steps of `global_batch_size`."""

    train: Rows
    validation: Rows
    seed: int
    global_batch_size: int

    @classmethod
    def of(cls, prepared: Prepared, seed: int, global_batch_size: int) -> Self:
        """That of a folder of prepared data."""
        train, validation = prepared.rows("train"), prepared.rows("validation")
        return cls(train=train, validation=validation, seed=seed, global_batch_size=global_batch_size)

    @property
    def rows(self) -> int:
        """Training rows."""
        return len(self.train)

    @property
    def validation_rows(self) -> int:
        """Validation rows."""
        return len(self.validation)

    @property
    def longest(self) -> int:
        """Tokens of the longest row of training and validation."""
        return int(max(self.train.lengths.max(), self.validation.lengths.max(initial=0)))

    @property
    def supervised_share(self) -> float:
        """Of the training rows' tokens."""
        return float(self.train.num_supervised.sum() / self.train.lengths.sum())

    def survey(self, size: MicroBatchSize, rows_per_step: int, replicas: int = 1) -> Survey:
        """The micro batches of the first steps, the largest of the run, and those of validation."""
        steps = range(1, 1 + max(1, min(-(-len(self.train) // rows_per_step), ROWS_SAMPLED // rows_per_step)))
        taken = (rows_of_step(step, rows_per_step, self.seed, self.train) for step in steps)
        sampled = [extents(self.train, share, size) for rows in taken for share in rank_shares(self.train, rows, replicas)]
        first = next(validated_together(self.validation), np.arange(0))
        tokens = int(self.validation.lengths[first].sum())
        found = [*sampled, *self._heavy(size, rows_per_step, replicas)]
        return Survey(
            steps=tuple(sampled),
            heaviest=_largest(found),
            heaviest_later=_largest([step[1:] for step in found]),
            heaviest_validation=_largest([extents(self.validation, share, size) for share in self._heavy_validation_shares(replicas)]),
            validation=extents(self.validation, first, size) if len(first) else (),
            validation_share=tokens / int(self.validation.lengths.sum()) if tokens else 1.0,
        )

    def heaviest_rows(self, size: MicroBatchSize, rows_per_step: int, replicas: int = 1) -> Indices:
        """The training rows of the step, or of the replica's share of it, with the largest micro batch that was found."""
        found = self._heavy_shares(size, rows_per_step, replicas)
        return max(found, key=lambda rows: extents(self.train, rows, size)[0].places)

    def heaviest_validation(self, size: MicroBatchSize, replicas: int = 1) -> Indices:
        """The validation rows among which the largest micro batch is; none where there are none."""
        found = self._heavy_validation_shares(replicas)
        return max(found, key=lambda rows: extents(self.validation, rows, size)[0].places, default=np.arange(0))

    def _heavy(self, size: MicroBatchSize, rows_per_step: int, replicas: int) -> Iterator[tuple[Extent, ...]]:
        yield from (extents(self.train, rows, size) for rows in self._heavy_shares(size, rows_per_step, replicas))

    def _heavy_shares(self, size: MicroBatchSize, rows_per_step: int, replicas: int) -> Iterator[Indices]:
        return _shares(self.train, self._heavy_steps(size, rows_per_step), replicas)

    def _heavy_steps(self, size: MicroBatchSize, rows_per_step: int) -> Iterator[Indices]:
        """The rows of each epoch's step with the most tokens, with the longest row, and of padded ones with the largest micro batch."""
        for epoch in range(EPOCHS_SEARCHED):
            order = epoch_order(self.seed, epoch, self.train)
            lengths, starts = self.train.lengths[order].astype(np.int64), np.arange(0, len(order), rows_per_step)
            found = {int(starts[by.reduceat(lengths, starts).argmax()]) for by in (np.add, np.maximum)}
            yield from (order[start : start + rows_per_step] for start in sorted(found))
            if size.packing == "off":
                steps = (order[start : start + rows_per_step] for start in starts[:STEPS_SEARCHED])
                yield max(steps, key=lambda rows: _padded_places(self.train, rows, size))

    def _heavy_validation_shares(self, replicas: int) -> Iterator[Indices]:
        return _shares(self.validation, self._heavy_validation(), replicas)

    def _heavy_validation(self) -> Iterator[Indices]:
        parts, lengths = list(validated_together(self.validation)), self.validation.lengths
        if parts:
            yield max(parts, key=lambda rows: int(lengths[rows].sum()))
            yield max(parts, key=lambda rows: int(lengths[rows].max()))

    def shared_share(self) -> float:
        """Of the first steps' tokens, those that a prefix tree of each step computes once for several rows."""
        steps = range(1, 1 + min(STEPS_SHARED, -(-len(self.train) // self.global_batch_size)))
        taken = [rows_of_step(step, self.global_batch_size, self.seed, self.train) for step in steps]
        tokens = [int(self.train.lengths[rows].sum()) for rows in taken]
        shares = [shared_share([self.train[int(row)] for row in rows]) for rows in taken]
        return sum(share * num for share, num in zip(shares, tokens, strict=True)) / sum(tokens)


def extents(rows: Rows, indices: Indices, size: MicroBatchSize) -> tuple[Extent, ...]:
    """Those of the micro batches that these rows make, the largest first."""
    if size.packing == "off":
        padded = (_padded(rows, part) for part in padded_batches(indices, rows.lengths, size))
        return tuple(sorted(padded, key=lambda extent: -extent.places))
    packed = trees if size.packing == "tree" else bins
    packs = packed([rows[int(index)] for index in indices], indices.tolist(), size.tokens)
    return tuple(sorted(map(_packed, packs), key=lambda extent: -extent.places))


def _shares(rows: Rows, taken: Iterable[Indices], replicas: int) -> Iterator[Indices]:
    """Every replica's share of each of these, where it has one."""
    yield from (share for indices in taken for share in rank_shares(rows, indices, replicas) if len(share))


def _padded_places(rows: Rows, indices: Indices, size: MicroBatchSize) -> int:
    return max(len(part) * int(rows.lengths[part[0]]) for part in padded_batches(indices, rows.lengths, size))


def _padded(rows: Rows, part: Indices) -> Extent:
    longest, targets = int(rows.lengths[part].max()), int(rows.num_supervised[part].sum())
    return Extent(
        rows=len(part),
        tokens=int(rows.lengths[part].sum()),
        supervised=targets,
        places=len(part) * longest,
        needed=targets,
        targets=targets,
        pairs=len(part) * longest * (longest + 1) // 2,
        longest=longest,
    )


def _packed(pack: Pack) -> Extent:
    return Extent(
        rows=pack.num_rows,
        tokens=pack.num_tokens,
        supervised=pack.num_targets,
        places=len(pack.ids_T),
        needed=len(np.unique(pack.sources_N)),
        targets=len(pack.targets_N),
        pairs=int(pack.positions_T.sum()) + len(pack.positions_T),
        longest=int(pack.positions_T.max()) + 1,
    )


def _largest(steps: Sequence[Sequence[Extent]]) -> tuple[Extent, ...]:
    """The micro batches with the most places, and with the most targets, of which one is the peak's."""
    every = [extent for step in steps for extent in step]
    if not every:
        return ()
    return tuple({max(every, key=lambda extent: extent.places), max(every, key=lambda extent: (extent.targets, extent.places))})

"""What the plan is told of prepared rows is what training will make of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.data.order import rank_shares, rows_of_step, validated_together
from luthier.data.store import TokenRow
from luthier.data.survey import EPOCHS_SEARCHED, PreparedWorkload, extents
from luthier.runs.workload import Extent, MicroBatchSize, Packing
from luthier.train.batch import MicroBatch, micro_batches
from tests.train.workshop import ragged_rows, stored

PROMPT = np.arange(20, dtype=np.int32)


def rows_with_a_prompt(number: int) -> list[TokenRow]:
    """A shared prompt of 20 tokens, then the row's own."""
    own = ragged_rows([4 + place % 7 for place in range(number)])
    return [
        TokenRow(ids=np.concatenate([PROMPT, row.ids]), supervised=np.concatenate([np.zeros(20, np.bool_), row.supervised])) for row in own
    ]


def workload(folder: Path, batch: int = 4) -> PreparedWorkload:
    train, validation = stored(rows_with_a_prompt(30), folder), stored(rows_with_a_prompt(10), folder, "validation")
    return PreparedWorkload(train=train, validation=validation, seed=1, global_batch_size=batch)


def extent_of(batch: MicroBatch) -> Extent:
    """What a real micro batch has."""
    if batch.tree is None:
        rows, longest = batch.ids_BT.shape
        pairs = rows * longest * (longest + 1) // 2
    else:
        rows, longest = len(batch.tree.nodes), batch.tree.longest  # every row here has a leaf of its own, and there is one root
        pairs = int(batch.tree.mask(torch.device("cpu")).sum())
    return Extent(
        rows=rows,
        tokens=batch.num_tokens,
        supervised=batch.num_targets,
        places=batch.ids_BT.numel(),
        needed=len(batch.needed_S),
        targets=len(batch.targets_N),
        pairs=pairs,
        longest=longest,
    )


@pytest.mark.parametrize("packing", ["off", "bins", "tree"])
def test_extents_are_those_of_the_micro_batches_that_training_makes(tmp_path: Path, packing: Packing) -> None:
    rows = workload(tmp_path).train
    size = MicroBatchSize(rows=3, tokens=70, packing=packing)
    taken = rows_of_step(2, 8, 1, rows)
    real = [extent_of(batch) for batch in micro_batches(rows, taken, size, torch.device("cpu"))]
    told = list(extents(rows, taken, size))
    if packing == "tree":  # nodes are not rows
        assert [extent.places for extent in told] == [extent.places for extent in real]
        assert sum(extent.rows for extent in told) == 8
        assert [(extent.needed, extent.targets, extent.pairs, extent.longest) for extent in told] == [
            (extent.needed, extent.targets, extent.pairs, extent.longest) for extent in real
        ]
        assert sum(extent.places for extent in told) < sum(extent.tokens for extent in told)
    else:
        assert told == real


def test_the_heaviest_is_of_the_step_with_the_most_tokens(tmp_path: Path) -> None:
    rows = workload(tmp_path)
    size = MicroBatchSize(rows=4, tokens=1000, packing="bins")
    heaviest = max(extent.places for extent in rows.survey(size, 4).heaviest)
    steps = range(1, 1 + EPOCHS_SEARCHED * 8)
    assert heaviest >= max(int(rows.train.lengths[rows_of_step(step, 4, 1, rows.train)].sum()) for step in steps)


def test_of_those_that_come_beside_gradients_the_heaviest_is_no_smaller_than_the_second_that_is_rehearsed(tmp_path: Path) -> None:
    rows = workload(tmp_path)
    size = MicroBatchSize(rows=4, tokens=70, packing="bins")
    found = rows.survey(size, 8)
    rehearsed = extents(rows.train, rows.heaviest_rows(size, 8), size)
    later = max(extent.places for extent in found.heaviest_later)
    assert rehearsed[1].places <= later <= max(extent.places for extent in found.heaviest)
    assert later > max(step[1].places for step in found.steps)  # of the first steps alone
    assert rows.survey(MicroBatchSize(rows=8, tokens=10_000, packing="bins"), 8).heaviest_later == ()


@pytest.mark.parametrize("packing", ["off", "bins"])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_heaviest_is_found_where_one_row_is_long_and_its_step_is_not(tmp_path: Path, rows: int, packing: Packing) -> None:
    lengths = [20] * 59 + [90] + [60] * 20
    train, validation = stored(ragged_rows(lengths), tmp_path), stored(ragged_rows([10] * 300 + [70]), tmp_path, "validation")
    told = PreparedWorkload(train=train, validation=validation, seed=1, global_batch_size=8)
    size = MicroBatchSize(rows=rows, tokens=90 * rows, packing=packing)
    true = [
        max(extent.places for step in range(1, 1 + 4 * 10) for extent in extents(train, rows_of_step(step, 8, 1, train), size)),
        max(extent.places for part in validated_together(validation) for extent in extents(validation, part, size)),
    ]
    found = told.survey(size, 8)
    assert [max(extent.places for extent in of) for of in (found.heaviest, found.heaviest_validation)] == true
    assert extents(train, told.heaviest_rows(size, 8), size)[0].places == true[0]
    assert extents(validation, told.heaviest_validation(size), size)[0].places == true[1]


def test_means_are_per_step_and_validation_tells_which_share_it_stands_for(tmp_path: Path) -> None:
    rows = workload(tmp_path)
    survey = rows.survey(MicroBatchSize(rows=4, tokens=1000, packing="off"), 4)
    assert len(survey.steps) == 8
    assert survey.mean("tokens") == pytest.approx(int(rows.train.lengths.sum()) / 8)
    assert survey.mean("rows") == 30 / 8
    assert sum(extent.tokens for extent in survey.validation) == int(rows.validation.lengths.sum())
    assert survey.validation_share == 1.0


def test_the_shared_share_is_that_of_trees_of_whole_steps(tmp_path: Path) -> None:
    rows = workload(tmp_path)
    tokens = int(rows.train.lengths.sum())
    steps = -(-30 // 4)
    assert rows.shared_share() == pytest.approx((30 - steps) * 20 / tokens)
    assert rows.longest == 30
    assert 0 < rows.supervised_share < 1


def test_a_replicas_micro_batches_are_those_of_its_share(tmp_path: Path) -> None:
    rows, size = workload(tmp_path, batch=8), MicroBatchSize(rows=8, tokens=1000, packing="bins")
    one, two = (rows.survey(size, 8, replicas) for replicas in (1, 2))
    assert 2 * two.mean("tokens") == pytest.approx(one.mean("tokens"))
    shares = [share for step in range(1, 1 + 4 * 4) for share in rank_shares(rows.train, rows_of_step(step, 8, 1, rows.train), 2)]
    largest = max(extent.places for share in shares for extent in extents(rows.train, share, size))
    assert max(extent.places for extent in two.heaviest) >= largest < max(extent.places for extent in one.heaviest)
    assert extents(rows.train, rows.heaviest_rows(size, 8, 2), size)[0].places == largest
    assert len(rows.heaviest_validation(size, 2)) == 5

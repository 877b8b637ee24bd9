"""Row order, steps and padded micro batches: functions of the seed and the step."""

from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.order import epoch_order, padded_batches, rank_shares, rows_of_step
from luthier.data.store import RowWriter, TokenRows
from luthier.plan.steps import Steps
from luthier.runs.workload import MicroBatchSize
from luthier.train.passes import dropout_seed
from tests.train.workshop import ragged_rows, stored


def steps_of(rows: int, batch: int, per_epoch: int, total: int) -> Steps:
    return Steps(rows=rows, global_batch_size=batch, per_epoch=per_epoch, total=total, warmup=0, saves=(total,), evaluations=())


def rows_of_examples(folder: Path, counts: list[int], lengths: Sequence[int] = ()) -> TokenRows:
    """Examples of so many rows each, as dialogues trained turn by turn have them."""
    folder.mkdir(exist_ok=True)
    rows = iter(ragged_rows(lengths or [2] * sum(counts)))
    with RowWriter(folder, "train") as writer:
        for example, count in enumerate(counts):
            writer.add([next(rows) for _ in range(count)], example)
    return TokenRows(folder, "train")


def test_an_epoch_takes_every_row_once_and_the_next_in_another_order(tmp_path: Path) -> None:
    rows = stored(ragged_rows([2] * 10), tmp_path)
    steps = steps_of(rows=10, batch=4, per_epoch=3, total=6)
    taken = [rows_of_step(step, steps.global_batch_size, 1, rows).tolist() for step in range(1, 7)]
    assert [len(step) for step in taken] == [4, 4, 2, 4, 4, 2]
    first, second = (list(chain(*epoch)) for epoch in (taken[:3], taken[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_order_is_the_same_on_every_machine(tmp_path: Path) -> None:
    rows = stored(ragged_rows([2] * 8), tmp_path)
    assert epoch_order(42, 0, rows).tolist() == [7, 1, 6, 4, 3, 5, 0, 2]
    assert epoch_order(42, 1, rows).tolist() != epoch_order(43, 0, rows).tolist()


def test_the_rows_of_one_example_stay_together_and_in_order(tmp_path: Path) -> None:
    rows = rows_of_examples(tmp_path, [1, 3, 2, 5, 1, 4])
    orders = [epoch_order(0, epoch, rows) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(16))
        examples = rows.example_index[order].tolist()
        assert len([one for one, other in pairwise(examples) if one != other]) == 6 - 1  # each begins once
        assert all(np.all(np.diff(order[examples.index(example) :][: examples.count(example)]) == 1) for example in range(6))
    assert len({tuple(order) for order in orders}) == 3


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    rows=st.integers(1, 16),
    tokens=st.integers(1, 1000),
)
def test_padded_batches_hold_every_row_once_within_their_limits_longest_first(lengths: list[int], rows: int, tokens: int) -> None:
    sizes = np.array(lengths, np.int32)
    batches = padded_batches(np.arange(len(lengths)), sizes, MicroBatchSize(rows=rows, tokens=tokens))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) <= rows and (len(batch) == 1 or len(batch) * sizes[batch].max() <= tokens) for batch in batches)
    longest = [sizes[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_a_models_own_dropout_differs_in_every_micro_batch() -> None:
    seeds = {dropout_seed(seed, step, micro) for seed in range(3) for step in range(1, 20) for micro in range(4)}
    assert len(seeds) == 3 * 19 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=12), ranks=st.integers(1, 5), data=st.data())
def test_ranks_divide_the_rows_of_a_step_among_them_in_like_loads(counts: list[int], ranks: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 50), min_size=sum(counts), max_size=sum(counts)))
    with TemporaryDirectory() as folder:
        rows = rows_of_examples(Path(folder), counts, lengths)
        indices = epoch_order(1, 0, rows)
        parts = rank_shares(rows, indices, ranks)
        assert len(parts) == ranks
        assert sorted(chain(*(part.tolist() for part in parts))) == list(range(len(rows)))
        places = {int(index): place for place, index in enumerate(indices)}
        assert all(np.all(np.diff([places[int(index)] for index in part]) > 0) for part in parts)  # in the order of the step
        loads = sorted(int(rows.lengths[part].sum()) for part in parts)
        even = -(-sum(lengths) // ranks)
        assert loads[-1] - loads[0] <= max(even, *lengths)


def test_the_rows_of_one_example_go_to_one_rank_unless_they_are_more_than_its_part(tmp_path: Path) -> None:
    rows = rows_of_examples(tmp_path, [4, 2, 2, 1], [10] * 9)
    parts = rank_shares(rows, np.arange(9), 2)
    assert [part.tolist() for part in parts] == [[0, 1, 2, 3, 8], [4, 5, 6, 7]]
    long = rows_of_examples(tmp_path / "long", [8], [10] * 8)
    assert [part.tolist() for part in rank_shares(long, np.arange(8), 2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_fewer_rows_than_ranks_leave_some_without(tmp_path: Path) -> None:
    rows = rows_of_examples(tmp_path, [1, 1])
    assert [part.tolist() for part in rank_shares(rows, np.array([1]), 3)] == [[1], [], []]

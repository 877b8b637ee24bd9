"""Row order, steps and micro batches: functions of the seed and the step."""

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.plan.steps import Steps
from luthier.train.order import MicroBatchSize, dropout_seed, epoch_order, micro_batches, rows_of_step


def steps_of(rows: int, batch: int, per_epoch: int, total: int) -> Steps:
    return Steps(rows=rows, global_batch_size=batch, per_epoch=per_epoch, total=total, warmup=0, saves=(total,), evaluations=())


def test_an_epoch_takes_every_row_once_and_the_next_in_another_order() -> None:
    steps = steps_of(rows=10, batch=4, per_epoch=3, total=6)
    taken = [rows_of_step(step, steps, seed=1).tolist() for step in range(1, 7)]
    assert [len(rows) for rows in taken] == [4, 4, 2, 4, 4, 2]
    first, second = (list(chain(*epoch)) for epoch in (taken[:3], taken[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_order_is_the_same_on_every_machine() -> None:
    assert epoch_order(42, 0, 8).tolist() == [7, 1, 6, 4, 3, 5, 0, 2]
    assert epoch_order(42, 1, 8).tolist() != epoch_order(43, 0, 8).tolist()


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    rows=st.integers(1, 16),
    tokens=st.integers(1, 1000),
)
def test_micro_batches_hold_every_row_once_within_their_limits_longest_first(lengths: list[int], rows: int, tokens: int) -> None:
    sizes = np.array(lengths, np.int32)
    batches = micro_batches(np.arange(len(lengths)), sizes, MicroBatchSize(rows=rows, tokens=tokens))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) <= rows and (len(batch) == 1 or len(batch) * sizes[batch].max() <= tokens) for batch in batches)
    longest = [sizes[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_every_micro_batch_has_its_own_dropout() -> None:
    seeds = {dropout_seed(seed, step, micro) for seed in range(3) for step in range(1, 20) for micro in range(4)}
    assert len(seeds) == 3 * 19 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)

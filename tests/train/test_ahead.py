"""Micro batches made in the background: each once, in time, and no fault lost."""

import threading
from pathlib import Path

import numpy as np
import pytest

from luthier.data.order import Indices
from luthier.runs.workload import MicroBatchSize
from luthier.train.ahead import Ahead
from luthier.train.batch import MicroBatch, micro_batches
from tests.train.workshop import CPU, ragged_rows, stored

Made = tuple[Indices, list[MicroBatch]]


class Kitchen:
    """Makes steps' batches, and knows which and in which thread."""

    def __init__(self, folder: Path, fails_at: int = 0) -> None:
        self.rows = stored(ragged_rows(), folder)
        self.made: list[int] = []
        self.threads: set[str] = set()
        self.began = {step: threading.Event() for step in range(1, 10)}
        self.fails_at = fails_at

    def make(self, step: int) -> Made:
        self.made.append(step)
        self.threads.add(threading.current_thread().name)
        self.began[step].set()
        if step == self.fails_at:
            raise ValueError(f"step {step} cannot be made")
        taken = np.array([step - 1, step])
        return taken, micro_batches(self.rows, taken, MicroBatchSize(rows=2, tokens=100), CPU)


def test_each_step_is_made_once_and_none_beyond_the_last(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    ahead = Ahead(make=kitchen.make, last=4)
    taken = [ahead.take(step) for step in range(1, 5)]
    assert [rows.tolist() for rows, _ in taken] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert [batches[0].num_tokens for _, batches in taken] == [35, 42, 19, 28]
    assert kitchen.made == [1, 2, 3, 4]


def test_the_next_step_is_made_while_this_one_is_computed(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    ahead = Ahead(make=kitchen.make, last=4)
    ahead.take(1)
    assert kitchen.began[2].wait(timeout=10)
    assert threading.current_thread().name not in kitchen.threads


def test_a_resumed_run_begins_where_it_likes(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    ahead = Ahead(make=kitchen.make, last=7)
    assert [ahead.take(step)[0].tolist() for step in (6, 7)] == [[5, 6], [6, 7]]
    assert kitchen.made == [6, 7]


def test_what_making_a_step_raised_is_raised_where_it_is_taken_and_not_before(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path, fails_at=2)
    ahead = Ahead(make=kitchen.make, last=4)
    assert ahead.take(1)[0].tolist() == [0, 1]
    assert kitchen.began[2].wait(timeout=10)
    with pytest.raises(ValueError, match="step 2 cannot be made"):
        ahead.take(2)

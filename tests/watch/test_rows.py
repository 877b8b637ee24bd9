"""What each validation row lost is kept as it was measured, and nothing is made of a file that is damaged."""

from pathlib import Path

import numpy as np

from luthier.runs.store import RunFolder
from luthier.watch.rows import Rows, keep, kept


def test_rows_are_read_as_they_were_kept_and_those_that_are_gone_or_damaged_are_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = Rows(losses=np.array([0.1, 2.5, 1 / 3]), tokens=np.array([1, 7, 2]))
    for step in (5, 10, 15):
        keep(run, step, rows)
    whole = run.validation(10).read_bytes()
    run.validation(10).write_bytes(whole[:-1])
    run.validation(15).write_bytes(b"no numbers")
    found = kept(run, {5, 10, 15, 20})
    assert list(found) == [5]
    assert found[5].losses.tolist() == [0.1, 2.5, 1 / 3]
    assert found[5].tokens.tolist() == [1, 7, 2]
    assert found[5].mean == (0.1 + 2.5 + 1 / 3) / 10

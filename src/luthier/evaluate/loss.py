"""The validation loss as an evaluation keeps it: row by row, each known by its tokens."""

import hashlib
from typing import TYPE_CHECKING

from luthier.data.store import Prepared
from luthier.evaluate.report import Loss, RowLoss
from luthier.evaluate.task import digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def loss_of(prepared: Prepared, losses_R: "npt.NDArray[np.float64]", targets_R: "npt.NDArray[np.int64]") -> Loss:
    """Of the sum over each validation row's supervised tokens, and their number."""
    rows = prepared.rows("validation")
    keys = [digest(example.key) for example in prepared.stream_examples("validation")]
    lost = tuple(
        RowLoss(
            row=hashlib.sha256(rows[place].ids.tobytes()).hexdigest()[:16],
            key=keys[rows.example_index[place]],
            nats=float(losses_R[place]),
            tokens=int(targets_R[place]),
        )
        for place in range(len(rows))
    )
    tokens = int(targets_R.sum())
    return Loss(value=float(losses_R.sum()) / tokens, n=len(rows), tokens=tokens, rows=lost)

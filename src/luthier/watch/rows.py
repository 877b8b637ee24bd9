"""What each validation row lost at a validation: `validations/step-000050.npy`, by which two validations are compared row by row."""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from luthier.core import files
from luthier.runs.store import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Of each row, in the order of the split: the sum over its supervised tokens, and their number."""

    losses: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]

    @property
    def mean(self) -> float:
        """The validation's loss: per supervised token."""
        return float(self.losses.sum() / self.tokens.sum())


def keep(run: RunFolder, step: int, rows: Rows) -> None:
    """Write one validation's; raises DiskError where that cannot be. 10,000 rows take 160 kB."""
    content = io.BytesIO()
    np.save(content, np.stack([rows.losses, rows.tokens.astype(np.float64)]))
    with files.told(run.validations.name, run.path):
        run.validations.mkdir(exist_ok=True)
        files.write(run.validation(step), content.getvalue())


def kept(run: RunFolder, steps: set[int]) -> dict[int, Rows]:
    """Those of these validations that are there and whole, by step."""
    return {step: found for step in sorted(steps & set(run.validated_steps)) if (found := _read(run, step)) is not None}


def _read(run: RunFolder, step: int) -> Rows | None:
    try:
        losses, tokens = np.load(run.validation(step), allow_pickle=False)
    except (OSError, ValueError, EOFError):  # it is gone meanwhile, or damaged: the comparison is left out
        return None
    return Rows(losses=losses, tokens=tokens.astype(np.int64))

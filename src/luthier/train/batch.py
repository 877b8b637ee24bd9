"""Rows side by side as tensors.  B = rows, T = positions, N = supervised positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from luthier.data.store import TokenRow


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Right-padded ids, and where to look: `targets_N` is what the model must say at (`rows_N`, `positions_N`).

    There is neither a label at a padded position nor an attention mask. A causal model's real positions stand before the padding and
    never see it, and no target is drawn from it: padding is known by position, so the pad token may be the end-of-turn token or any other.
    """

    ids_BT: Tensor
    rows_N: Tensor
    positions_N: Tensor
    targets_N: Tensor
    num_tokens: int
    """Without padding."""

    @property
    def num_targets(self) -> int:
        """Supervised tokens."""
        return len(self.targets_N)


def collate(rows: Sequence[TokenRow], device: torch.device, pad_id: int = 0) -> MicroBatch:
    """The rows as one micro batch on `device`."""
    longest = max(len(row) for row in rows)
    ids_BT = np.full((len(rows), longest), pad_id, np.int64)
    supervised_BT = np.zeros((len(rows), longest), np.bool_)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)] = row.ids
        supervised_BT[index, : len(row)] = row.supervised
    rows_N, positions_N = np.nonzero(supervised_BT[:, 1:])  # token i is predicted at position i - 1
    return MicroBatch(
        ids_BT=_on(device, ids_BT),
        rows_N=_on(device, rows_N),
        positions_N=_on(device, positions_N),
        targets_N=_on(device, ids_BT[rows_N, positions_N + 1]),
        num_tokens=sum(len(row) for row in rows),
    )


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

"""Micro batches: rows side by side, padded, or as one pack.  B = rows, T = positions, A = B·T, N = targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from luthier.data.order import Indices, padded_batches
from luthier.data.pack import Pack, bins, row_keys, trees
from luthier.data.store import Rows, TokenRow
from luthier.model import attention
from luthier.model.attention import Tree
from luthier.runs.workload import MicroBatchSize


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Ids, and what the model must say where: after the token at `sources_N` of all A comes `targets_N`, for `counts_N` rows.

    Padded rows need neither a label at a padded position nor an attention mask. A causal model's real positions stand before the padding
    and never see it, and no target is drawn from it: padding is known by position, the pad token may be the end-of-turn token or any other.
    """

    ids_BT: Tensor
    needed_S: Tensor
    """The tokens that targets are predicted from, each once: after the last layer's attention no other is looked at."""
    places_N: Tensor
    """From which of them each target is."""
    targets_N: Tensor
    counts_N: Tensor
    keys_A: Tensor
    """What each token is to dropout (`luthier.data.pack`)."""
    tree: Tree | None
    """Which token sees which in a pack, whose B is 1."""
    num_tokens: int
    """Of the rows: without padding, and before sharing."""
    num_targets: int
    """Supervised tokens of the rows."""
    rows_M: Indices
    """Of each of them the row, by its number in the split …"""
    targets_M: Indices
    """… and which of the N it is; both lie on the host, for validation only."""
    hidden_BTD: Tensor | None = None
    """What the stages before this one have made of the ids, with which it goes on."""
    temperature: float = 1.0
    """That logits are divided by."""
    objective: Callable[[nn.Module, "MicroBatch"], Tensor] | None = None
    """A model's loss on it, summed over the supervised tokens; none of its own: how unlikely they are (`luthier.train.objective`)."""

    @property
    def sources_N(self) -> Tensor:
        """Where in A each target is predicted from."""
        return self.needed_S[self.places_N]

    def inputs(self) -> dict[str, Any]:
        """What the model's forward is given."""
        given = {"input_ids": self.ids_BT} if self.hidden_BTD is None else {"inputs_embeds": self.hidden_BTD}
        inputs: dict[str, Any] = {**given, "use_cache": False}
        if self.tree is None:
            return inputs
        return {**inputs, **attention.arguments(self.tree, self.ids_BT.device)}

    def hints(self) -> dict[str, Any]:
        """What a fused last layer may be told: the tokens whose hidden states are asked for. It returns these only."""
        return {} if self.tree is None or self.ids_BT.is_cuda else {"needed_S": self.needed_S}


def micro_batches(rows: Rows, indices: Indices, size: MicroBatchSize, device: torch.device) -> list[MicroBatch]:
    """These rows divided as `size` says, the largest micro batch first, so that too little memory shows at once.

    The loss is a sum, dropout goes by token: neither order nor division changes the update.
    """
    if size.packing == "off":
        parts = padded_batches(indices, rows.lengths, size)
        return [collate([rows[int(index)] for index in part], part.tolist(), device) for part in parts]
    packed = trees if size.packing == "tree" else bins
    packs = packed([rows[int(index)] for index in indices], indices.tolist(), size.tokens)
    return [of_pack(pack, device) for pack in sorted(packs, key=lambda pack: -len(pack.ids_T))]


def nothing(size: MicroBatchSize, device: torch.device) -> MicroBatch:
    """Two tokens of which none counts: what is left to compute where a rank has no rows, and others wait for it in every layer."""
    row = TokenRow(ids=np.zeros(2, np.int32), supervised=np.array([False, True]))
    batch = collate([row], [0], device) if size.packing == "off" else of_pack(bins([row], [0], len(row))[0], device)
    none = np.zeros(0, np.int64)
    return replace(batch, counts_N=torch.zeros_like(batch.counts_N), num_tokens=0, num_targets=0, rows_M=none, targets_M=none)


def of_pack(pack: Pack, device: torch.device) -> MicroBatch:
    """A pack on `device`."""
    needed_S, places_N = np.unique(pack.sources_N, return_inverse=True)
    return MicroBatch(
        ids_BT=_on(device, pack.ids_T[None]),
        needed_S=_on(device, needed_S),
        places_N=_on(device, places_N),
        targets_N=_on(device, pack.targets_N),
        counts_N=_on(device, pack.counts_N),
        keys_A=_on(device, pack.keys_T),
        tree=Tree.of(pack),
        num_tokens=pack.num_tokens,
        num_targets=pack.num_targets,
        rows_M=pack.rows_M,
        targets_M=pack.targets_M,
    )


def collate(rows: Sequence[TokenRow], numbers: Sequence[int], device: torch.device, pad_id: int = 0) -> MicroBatch:
    """The rows right-padded to the longest; `numbers` are theirs in their split."""
    longest = max(len(row) for row in rows)
    ids_BT = np.full((len(rows), longest), pad_id, np.int64)
    supervised_BT = np.zeros((len(rows), longest), np.bool_)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)] = row.ids
        supervised_BT[index, : len(row)] = row.supervised
    rows_N, positions_N = np.nonzero(supervised_BT[:, 1:])  # token i is predicted at position i - 1
    return MicroBatch(
        ids_BT=_on(device, ids_BT),
        needed_S=_on(device, rows_N * longest + positions_N),
        places_N=_on(device, np.arange(len(rows_N))),
        targets_N=_on(device, ids_BT[rows_N, positions_N + 1]),
        counts_N=_on(device, np.ones(len(rows_N), np.int64)),
        keys_A=_on(device, np.concatenate([row_keys(number, longest) for number in numbers])),
        tree=None,
        num_tokens=sum(len(row) for row in rows),
        num_targets=len(rows_N),
        rows_M=np.asarray(numbers, np.int64)[rows_N],
        targets_M=np.arange(len(rows_N)),
    )


def _on(device: torch.device, array: npt.NDArray[np.int64]) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

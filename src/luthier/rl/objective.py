"""The loss of answers that were rewarded: GRPO's by token (arXiv:2402.03300), GSPO's by answer (arXiv:2507.18071).

R = rows (an answer after its prompt), S = those of a micro batch, N = its targets, M = supervised tokens of its rows, one by one.

With the ratio ρ = π(token) / π(token) when it was drawn, the advantage A of its answer, and clip ε, a token costs

    GRPO    -min(ρ A, clamp(ρ, 1 - ε, 1 + ε) A)
    GSPO    the same with the answer's ratio, exp(mean over its tokens of log ρ)

and kl · (exp(log π₀ - log π) - (log π₀ - log π) - 1) besides, an estimate of the divergence from the model π₀ that the run began with
(Schulman's k3). GRPO's loss is the mean over all tokens of a step, GSPO's over all answers, of each the mean. What was drawn by another
model than the one that learns (several updates, a server that rounds otherwise) is thereby weighted as it should be.

Worked: A = 1, ρ = 1.5, ε = 0.2 costs -1.2, and has no gradient: it is likely enough now. A = -1, ρ = 1.5 costs 1.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from luthier.data.order import Indices
from luthier.train.batch import MicroBatch
from luthier.train.objective import nll

Floats = npt.NDArray[np.float32]


@dataclass(slots=True)
class Tally:
    """Sums over the tokens that were learned from, for the step's line: left on the device until the step is over."""

    tokens: int = 0
    sums: Tensor | None = None
    """Of: the divergence from the beginning, |log ρ|, and tokens whose ratio was clipped."""

    def add(self, *each_M: Tensor) -> None:
        """Of one micro batch's tokens."""
        found = torch.stack([values_M.detach().float().sum() for values_M in each_M])
        self.sums = found if self.sums is None else self.sums + found
        self.tokens += len(each_M[0])

    def read(self) -> list[float]:
        """The number of tokens, and the sums."""
        return [float(self.tokens), *([0.0] * 3 if self.sums is None else self.sums.tolist())]  # a sync, once the step is logged


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyLoss:
    """The objective of a step's micro batches (`MicroBatch.objective`): a sum that their number of tokens divides."""

    algorithm: Literal["grpo", "gspo"]
    clip: float
    kl: float
    advantages_R: Floats
    """Of each row's answer."""
    drawn_R: Sequence[Floats]
    """Of each row's tokens, how probable they were when they were drawn, in nats."""
    begun_R: Sequence[Floats]
    """The same to the model that the run began with; empty where `kl` is 0."""
    tally: Tally = field(default_factory=Tally)

    def __call__(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        """Of one micro batch."""
        rows_S, begins_S = runs(batch.rows_M)
        device = batch.targets_N.device
        seq_M = torch.as_tensor(np.repeat(np.arange(len(rows_S)), np.diff([*begins_S, len(batch.rows_M)])), device=device)
        advantages_M = torch.as_tensor(self.advantages_R[rows_S], device=device)[seq_M]
        logp_M = -nll(model, batch)[torch.as_tensor(batch.targets_M, device=device)]
        moved_M = logp_M - _all(self.drawn_R, rows_S, device)
        log_ratio_M, weights_M = moved_M, torch.ones_like(moved_M)
        if self.algorithm == "gspo":
            lengths_S = torch.bincount(seq_M).to(moved_M.dtype)
            log_ratio_M = (torch.zeros_like(lengths_S).index_add(0, seq_M, moved_M) / lengths_S)[seq_M]
            weights_M = self._share / lengths_S[seq_M]
        ratio_M = log_ratio_M.exp()
        clipped_M = ratio_M.clamp(1 - self.clip, 1 + self.clip)
        losses_M = -torch.minimum(ratio_M * advantages_M, clipped_M * advantages_M)
        apart_M = torch.zeros_like(losses_M)
        if self.kl:
            behind_M = _all(self.begun_R, rows_S, device) - logp_M
            apart_M = behind_M.exp() - behind_M - 1
            losses_M = losses_M + self.kl * apart_M
        self.tally.add(apart_M, moved_M.abs(), ratio_M * advantages_M > clipped_M * advantages_M)
        return (losses_M * weights_M).sum()

    @property
    def _share(self) -> float:
        """Tokens for each answer of the step, on average: what makes of a mean over tokens one over answers."""
        return sum(map(len, self.drawn_R)) / len(self.drawn_R)


def runs(rows_M: Indices) -> tuple[Indices, Indices]:
    """The rows of a micro batch in the order of their tokens, and where the tokens of each begin."""
    begins_S = np.flatnonzero(np.diff(rows_M, prepend=-1))
    return rows_M[begins_S], begins_S


def _all(values_R: Sequence[Floats], rows_S: Indices, device: torch.device) -> Tensor:
    return torch.as_tensor(np.concatenate([values_R[int(row)] for row in rows_S]), device=device)

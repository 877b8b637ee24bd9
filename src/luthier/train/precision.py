"""What a run computes in, where, and by which ranks."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from luthier.train.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The compute type, where, and by which ranks. Frozen weights are stored in it, trained ones in float32, and autocast computes in it.

    Only float16 needs the scaler; for the others it does nothing.
    """

    device: torch.device
    dtype: torch.dtype
    scaler: torch.amp.GradScaler = field(repr=False)
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, dtype: torch.dtype, device: torch.device, ranks: Ranks = ALONE) -> "Precision":
        """The precision for a compute type."""
        return cls(device=device, dtype=dtype, scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16), ranks=ranks)

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        context: AbstractContextManager[None] = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        return context

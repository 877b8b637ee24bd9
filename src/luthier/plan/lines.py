"""A line of the memory ledger."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["weights", "adapters", "gradients", "optimizer", "activations", "transient", "context"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One consumer of a device's memory at the peak."""

    name: str
    kind: Kind
    bytes: int
    formula: str

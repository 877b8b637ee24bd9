"""The rows as the plan sees them: how many, how long, and which micro batches they make; `luthier.data.survey` tells of prepared ones."""

from dataclasses import dataclass
from typing import Literal, Protocol

Packing = Literal["off", "bins", "tree"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchSize:
    """How a step's rows are divided: padded, at most so many rows and tokens; packed, at most so many tokens. Always one row."""

    rows: int
    tokens: int
    packing: Packing = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """One micro batch, as its memory and time depend on it."""

    rows: int
    tokens: int
    """Of the rows: without padding, and before sharing."""
    supervised: int
    """Of these tokens."""
    places: int
    """That layers compute: after sharing, or with padding."""
    needed: int
    """Places that a target is predicted from."""
    targets: int
    """Rows of the head's product: pairs of a place and a target, each once."""
    pairs: int
    """Of a query and a key it sees: Σ over places of position + 1; padded rows Σ rows · length²/2."""
    longest: int
    """Places of the longest row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The micro batches of some of a run's steps: the first ones, and the largest."""

    steps: tuple[tuple[Extent, ...], ...]
    """Of the first steps, from which means are taken; where replicas divide them, of each replica's share."""
    heaviest: tuple[Extent, ...]
    """Candidates for the peak: the largest training micro batches that were found."""
    heaviest_later: tuple[Extent, ...] = ()
    """The same of those that are not their step's largest: beside them are gradients."""
    heaviest_validation: tuple[Extent, ...] = ()
    """The same of validation."""
    validation: tuple[Extent, ...]
    """All of one validation, or of its first rows; empty without validation rows."""
    validation_share: float = 1.0
    """Of the validation rows that `validation` stands for."""

    def mean(self, what: Literal["rows", "tokens", "supervised", "places", "needed", "targets", "pairs"]) -> float:
        """A number of the micro batches, per step."""
        return sum(float(getattr(extent, what)) for step in self.steps for extent in step) / len(self.steps)

    @property
    def shared_share(self) -> float:
        """Of the rows' tokens, those that stand in a pack once for several rows."""
        return max(0.0, 1 - self.mean("places") / self.mean("tokens"))

    @property
    def padding_share(self) -> float:
        """Of the places that are computed, those without a token."""
        return max(0.0, 1 - self.mean("tokens") / self.mean("places"))

    @property
    def micro_batches(self) -> float:
        """Per step."""
        return sum(map(len, self.steps)) / len(self.steps)


class Workload(Protocol):
    """What can be asked of the rows, prepared or only stated."""

    @property
    def rows(self) -> int:
        """Training rows."""

    @property
    def validation_rows(self) -> int:
        """Validation rows."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row of training and validation."""

    @property
    def supervised_share(self) -> float:
        """Of the training rows' tokens."""

    def survey(self, size: MicroBatchSize, rows_per_step: int, replicas: int = 1) -> Survey:
        """What micro batches of this size are like on one of the replicas that divide a step's rows."""

    def shared_share(self) -> float:
        """Of the first steps' tokens, those that a prefix tree of each step computes once for several rows."""

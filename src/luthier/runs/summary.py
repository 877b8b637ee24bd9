"""The types of `data.json`: what `prepare` found, kept, dropped and cut. Read by plan, report and cards without the rows."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from luthier.core import files
from luthier.core.errors import RunError

NO_TARGET = "no token to train on"
"""Why a row is dropped whose loss would be that of nothing."""


class Part(BaseModel):
    """Frozen, and strict about keys: a data.json of another version is an error, not a guess."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSummary(Part):
    """One file: how it was read."""

    path: str
    sha256: str
    format: str
    rows: int


class RowCounts(Part):
    """read = kept + all dropped; examples are up to three `origin: detail` per reason."""

    read: int
    kept: int
    dropped: Mapping[str, int]
    dropped_examples: Mapping[str, tuple[str, ...]]


class Lengths(Part):
    """Row lengths in tokens. `histogram` maps a bin's upper edge to its rows; `coverage` a length to the share of rows that fit."""

    total: int
    mean: float
    p50: int
    p95: int
    max: int
    histogram: Mapping[int, int]
    coverage: Mapping[int, float]


class Cut(Part):
    """What `max_length` cost rows that stay: rows shortened, tokens lost, answers cut (trained without an end-of-turn) or lost."""

    rows: int = 0
    tokens: int = 0
    answers: int = 0


class OverLength(Part):
    """What `max_length` took whole: examples, and the answers in them that would have been trained on."""

    examples: int = 0
    answers: int = 0


class SplitSummary(Part):
    """One split. `examples` are conversations, `rows` token rows: more where a template makes each turn a row of its own; `answers`
    are the assistant's that are trained on whole.

    `groups` are examples by group. `group_shares` are the obtained shares by group, to be held against `wanted_share`; shares
    count what `max_per_group` took from train, so that a cap does not look like a missed quota.
    """

    examples: int
    rows: int
    tokens: int
    supervised_tokens: int
    answers: int
    wanted_share: float
    obtained_share: float
    groups: Mapping[str, int]
    group_shares: Mapping[str, float] = {}
    lengths: Lengths
    cut: Cut
    over_length: OverLength = OverLength()


class Overlap(Part):
    """Held-out examples of a split whose prompt also stands in train, to the letter or nearly."""

    exact: int
    near: int
    share_exact: float
    share_near: float
    examples: tuple[str, ...]


class Template(Part):
    """The chat template's hash, whether a dialogue's rendering is a prefix of its continuation, and how an assistant's turn ends."""

    sha256: str
    prefix_stable: bool
    end_of_turn: str
    stop_ids: tuple[int, ...]


class DataSummary(Part):
    """`data.json` whole."""

    hash: str
    sources: tuple[SourceSummary, ...]
    rows: RowCounts
    groups: Mapping[str, int]
    splits: Mapping[str, SplitSummary]
    max_length: int
    template: Template
    overlap: Mapping[str, Overlap]

    @property
    def supervised_share(self) -> float:
        """Supervised tokens of the training rows divided by their tokens."""
        train = self.splits["train"]
        return train.supervised_tokens / train.tokens if train.tokens else 0.0

    @classmethod
    def read(cls, path: Path) -> "DataSummary":
        """The summary in a data.json; raises RunError where it is none, or of another version."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            change = "remove this file in a run's folder, and the same command goes on; in prepared/, remove the folder that it stands in"
            raise RunError(f"this is not what prepare writes: {str(error).splitlines()[0]}", where=str(path), change=change) from error

    def write(self, path: Path) -> None:
        """Write it as data.json, whole or not at all."""
        files.write_json(path, self.model_dump(mode="json"))

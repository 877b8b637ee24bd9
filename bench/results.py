"""results.json: what a contest measured, and the figures that follow from it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Frozen, and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Round(Part):
    """One epoch of one contestant."""

    seconds: float
    processor_seconds: float
    others_seconds: float
    """Processor seconds that everything else on the machine took meanwhile: the round is doubtful where this is more than a little."""
    floor_operations: float


class Counted(Part):
    """What a contestant trains in an epoch, as it counted itself; `digest` is empty where it joins rows."""

    rows: int
    tokens: int
    supervised: int
    digest: str = ""


class Entry(Part):
    """One contestant. `whole`: it trains whole dialogues once, the same text as other rows; `failed` is empty, or says how it ended."""

    name: str
    peer: bool
    whole: bool
    variables: dict[str, str]
    options: dict[str, Any]
    versions: dict[str, str] = {}
    resolved: dict[str, Any] = {}
    """What Luthier's `auto` values became."""
    counted: Counted | None = None
    first_step_seconds: float = 0.0
    """From the start of its process, data preparation and loading included."""
    peak_bytes: int = 0
    """Of resident memory (VmHWM), after the last round."""
    device_peak_bytes: int = 0
    rounds: tuple[Round, ...] = ()
    failed: str = ""

    @property
    def seconds(self) -> float:
        """Median of an epoch."""
        return statistics.median(item.seconds for item in self.rounds)


class Results(Part):
    """One contest: conditions, counts of the rows as transformers alone renders them, and the contestants, Luthier's first."""

    date: str
    command: str
    processor: str
    cores: int
    threads: int
    load_before: float
    gpu: str
    workload: str
    told: str
    size: str
    batch: int
    dropout: float
    allocator: str = ""
    """Of all contestants; empty in results of before it was one for all (Luthier's side had jemalloc where it was installed)."""
    rows: Counted
    whole: Counted
    rate_flops: float
    rate_told: str
    peak_flops: float
    peak_told: str
    four_n_operations: float
    entries: tuple[Entry, ...]

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Those in a file."""
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        """To a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @property
    def ran(self) -> list[Entry]:
        """Contestants that came through at least one round."""
        return [entry for entry in self.entries if entry.rounds]

    def expected(self, entry: Entry) -> Counted:
        """What the contestant has to train."""
        return self.whole if entry.whole else self.rows

    def agrees(self, entry: Entry) -> str:
        """`same rows`, `same tokens` (joined rows have no digest), or what differs."""
        found, wanted = entry.counted, self.expected(entry)
        if found is None:
            return "not counted"
        if (found.tokens, found.supervised) != (wanted.tokens, wanted.supervised):
            return f"DIFFERS: {found.tokens} tokens, {found.supervised} supervised"
        if not found.digest:
            return "same tokens"
        return "same rows" if found.digest == wanted.digest else "DIFFERS: other tokens, order or targets"

    def tokens_per_second(self, entry: Entry) -> float:
        """Tokens of its rows, whether computed once or often, per second."""
        return self.expected(entry).tokens / entry.seconds

    def share_of_floor(self, entry: Entry) -> float:
        """Median over the rounds of the least seconds there could be (operations over the measured matrix rate), divided by the seconds."""
        return statistics.median(item.floor_operations / self.rate_flops / item.seconds for item in entry.rounds)

    def utilization(self, entry: Entry) -> float:
        """MFU: 4·N·tokens over the device's peak and the seconds; 0 where the peak is not known."""
        return self.four_n_operations / self.peak_flops / entry.seconds if self.peak_flops else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times longer one took than the other for the same rows (or dialogues), over pairs of neighbouring rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} × ({self.low:.2f} … {self.high:.2f})"


def ratio(slow: Entry, fast: Entry) -> Ratio:
    """Paired by round."""
    found = [one.seconds / other.seconds for one, other in zip(slow.rounds, fast.rounds, strict=False)]
    return Ratio(median=statistics.median(found), low=min(found), high=max(found))


def best_peer(results: Results) -> Entry | None:
    """The fastest of the peers that train the same rows; nobody where there are none."""
    peers = [entry for entry in results.ran if entry.peer and not entry.whole]
    return min(peers, key=lambda entry: entry.seconds, default=None)


def disturbed(entries: Sequence[Entry]) -> list[str]:
    """Contestants and rounds in which others took more than 5 % of the processor time."""
    return [
        f"{entry.name}, round {number}: {item.others_seconds / item.processor_seconds:.0%}"
        for entry in entries
        for number, item in enumerate(entry.rounds, start=1)
        if item.others_seconds > 0.05 * item.processor_seconds
    ]

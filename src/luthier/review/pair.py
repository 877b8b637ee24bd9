"""A row that two models answered differently, and the draw of those that people are asked."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from luthier.core import jsonl
from luthier.evaluate.report import Prediction, Report

Whose = Literal["tuned", "base"]


class Pair(BaseModel):
    """Two answers to one row, as their evaluations kept them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    origin: str
    group: str
    messages: tuple[Mapping[str, Any], ...]
    reference: str
    tuned: str
    base: str
    apart: bool
    """Whether the task's scorer tells them apart."""
    key: str

    @cached_property
    def id(self) -> str:
        """A digest of the row and both answers, the same whichever of them is whose: a page can show it."""
        row = [self.task, self.origin, self.messages, self.reference]
        return hashlib.sha256(jsonl.dumps([row, sorted((self.tuned, self.base))]).encode()).hexdigest()[:16]

    @property
    def stratum(self) -> tuple[str, str, bool]:
        """What it is drawn from: a task's group, and whether the scorer tells the answers apart."""
        return self.task, self.group, self.apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The pairs that are asked, in their order; of how many rows both models answered, and of how many the same."""

    pairs: tuple[Pair, ...]
    num_rows: int
    num_same: int


def pairs(tuned: Report, base: Report) -> list[Pair]:
    """Every row that both answered, the same answers among them."""
    return list(_pairs(tuned, base))


def draw(tuned: Report, base: Report, *, rows: int, seed: int) -> Draw:
    """So many rows with different answers, each stratum's by its share, at least one; those with the smallest hash, so that a larger draw
    has the smaller one in it. Rows with the same answer are ties that nobody need be asked."""
    both = pairs(tuned, base)
    strata: dict[tuple[str, str, bool], list[Pair]] = {}
    for pair in sorted((pair for pair in both if pair.tuned != pair.base), key=lambda pair: _place(pair, seed)):
        strata.setdefault(pair.stratum, []).append(pair)
    quotas = shares([len(found) for found in strata.values()], rows)
    drawn = [pair for found, quota in zip(strata.values(), quotas, strict=True) for pair in found[:quota]]
    return Draw(
        pairs=tuple(sorted(drawn, key=lambda pair: _place(pair, seed))),
        num_rows=len(both),
        num_same=sum(pair.tuned == pair.base for pair in both),
    )


def shares(sizes: Sequence[int], total: int) -> list[int]:
    """How many to take of each: its share of the total, and at least one where the total allows. Of 90, 9 and 1 ten are 8, 1 and 1."""
    wanted = [min(total, sum(sizes)) * size / sum(sizes) for size in sizes]
    found = [max(1, math.floor(share)) for share in wanted]
    everywhere = range(len(sizes))
    while sum(found) < round(sum(wanted)):
        found[max(everywhere, key=lambda place: wanted[place] - found[place])] += 1
    while sum(found) > round(sum(wanted)):
        found[max(everywhere, key=lambda place: (found[place] > 1, found[place] - wanted[place]))] -= 1
    return found


def _pairs(tuned: Report, base: Report) -> Iterator[Pair]:
    for task, answered in tuned.predictions.items():
        others = {row.row: row for row in base.predictions.get(task, ())}
        for row in answered:
            if row.row in others:
                yield _pair(row, others[row.row])


def _pair(tuned: Prediction, base: Prediction) -> Pair:
    return Pair(
        task=tuned.task,
        origin=tuned.origin,
        group=tuned.group,
        messages=tuned.messages,
        reference=tuned.reference,
        tuned=tuned.answer,
        base=base.answer,
        apart=tuned.score != base.score,
        key=tuned.key,
    )


def _place(pair: Pair, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{pair.id}".encode()).hexdigest()

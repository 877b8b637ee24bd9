"""What a sweep may take, what it has taken, and whether a trial still fits."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from luthier.core.errors import UsageError
from luthier.core.words import duration

SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
LIMIT = re.compile(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(SECONDS)}|dollars)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Time, and US dollars for the devices it was on."""

    seconds: float = 0.0
    dollars: float = 0.0

    def __add__(self, other: Self) -> "Spent":
        return Spent(seconds=self.seconds + other.seconds, dollars=self.dollars + other.dollars)

    def __str__(self) -> str:
        return duration(self.seconds) + (f", ${self.dollars:,.2f}" if self.dollars else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that may be spent; infinite where nothing is said."""

    seconds: float = math.inf
    dollars: float = math.inf

    @classmethod
    def read(cls, within: Sequence[str]) -> "Budget":
        """`30 min`, `5 dollars`, or both; raises UsageError."""
        seconds, dollars = math.inf, math.inf
        for text in within:
            if not (found := LIMIT.fullmatch(text)):
                raise UsageError(f"--within {text!r} is no time and no money", change="write '90 s', '30 min', '8 h' or '5 dollars'")
            if found[2] == "dollars":
                dollars = min(dollars, float(found[1]))
            else:
                seconds = min(seconds, float(found[1]) * SECONDS[found[2]])
        return cls(seconds=seconds, dollars=dollars)

    def bears(self, spent: Spent, more: Spent) -> bool:
        """Whether so much more still fits."""
        whole = spent + more
        return whole.seconds <= self.seconds and whole.dollars <= self.dollars

    def seconds_left(self, spent: Spent, dollars_per_second: float) -> float:
        """How long devices at this price may still be used."""
        by_price = (self.dollars - spent.dollars) / dollars_per_second if dollars_per_second else math.inf
        return max(0.0, min(self.seconds - spent.seconds, by_price))

    def __str__(self) -> str:
        parts = [duration(self.seconds)] if math.isfinite(self.seconds) else []
        return " and ".join([*parts, *([f"${self.dollars:,.2f}"] if math.isfinite(self.dollars) else [])])


ENDLESS = Budget()

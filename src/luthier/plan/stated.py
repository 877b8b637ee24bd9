"""Rows that are only stated, before there is data: so many, so long."""

import re
from dataclasses import dataclass
from typing import Self

from luthier.core.errors import UsageError
from luthier.recipe.schema import Recipe
from luthier.runs.workload import Extent, MicroBatchSize, Survey

SUPERVISED = 0.5
"""Share of a row's tokens that are trained on, where nobody knows it yet: a guess, between dialogues (0.8) and classification (0.05)."""

FILE_SHARE = 0.1
"""Validation rows for a training row, where they are a file that nobody has counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedWorkload:
    """`--rows N --tokens MEAN:MAX`: rows of MEAN tokens, and for the peak a micro batch of rows of MAX; no prefixes are shared."""

    rows: int
    validation_rows: int
    mean: int
    longest: int
    supervised_share: float = SUPERVISED

    @classmethod
    def read(cls, recipe: Recipe, rows: str, tokens: str) -> Self:
        """From `--rows N[:VALIDATION]` and `--tokens MEAN[:MAX]`; what is left out follows from the recipe. Raises UsageError."""
        data = recipe.data
        if tokens == "max_length":
            if data.max_length == "fit":
                change = "give --tokens MEAN:MAX, or a number as data.max_length"
                raise UsageError("how long the rows are is not known: data.max_length is `fit`", where="--rows", change=change)
            tokens = str(data.max_length)
        train, validation = _numbers("--rows", rows)
        mean, longest = _numbers("--tokens", tokens)
        longest = mean if longest is None else longest
        if longest < mean:
            raise UsageError(
                f"the longest row cannot have {longest} tokens where the mean is {mean}", where="--tokens", change="write MEAN:MAX"
            )
        if data.max_length != "fit" and longest > data.max_length:
            what = f"rows of {longest} tokens are longer than data.max_length, {data.max_length}"
            raise UsageError(what, where="--tokens", change="give the lengths that rows have after that rule, or raise data.max_length")
        if validation is None:
            share = data.split.validation
            validation = round(train * (FILE_SHARE if isinstance(share, str) else share / data.split.train))
        return cls(rows=train, validation_rows=validation, mean=mean, longest=longest)

    def survey(self, size: MicroBatchSize, rows_per_step: int, replicas: int = 1) -> Survey:
        """Micro batches of rows of the mean length; the heaviest is of the longest rows."""
        rows = -(-min(rows_per_step, self.rows) // replicas)
        longest = self._divided(rows, self.longest, size)
        return Survey(
            steps=(self._divided(rows, self.mean, size),),
            heaviest=longest[:1],
            heaviest_later=longest[1:2],
            validation=self._divided(self.validation_rows, self.mean, size),
        )

    def shared_share(self) -> float:
        """None is known."""
        return 0.0

    def _divided(self, rows: int, length: int, size: MicroBatchSize) -> tuple[Extent, ...]:
        at_once = max(1, size.tokens // length)
        if size.packing == "off":
            at_once = min(at_once, size.rows)
        full, rest = divmod(rows, at_once)
        return tuple(self._extent(number, length) for number in (*[at_once] * full, *([rest] if rest else [])))

    def _extent(self, rows: int, length: int) -> Extent:
        targets = round(rows * length * self.supervised_share)
        return Extent(
            rows=rows,
            tokens=rows * length,
            supervised=targets,
            places=rows * length,
            needed=targets,
            targets=targets,
            pairs=rows * length * (length + 1) // 2,
            longest=length,
        )


def _numbers(option: str, text: str) -> tuple[int, int | None]:
    found = re.fullmatch(r"([1-9][\d_]*)(?::(\d[\d_]*))?", text)
    if not found:
        raise UsageError(
            f"{option} {text!r} is not a number from 1 on, or two with a colon", change=f"write {option} 2000 or {option} 2000:4096"
        )
    return int(found[1]), int(found[2]) if found[2] else None

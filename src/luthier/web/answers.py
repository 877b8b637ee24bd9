"""Answers of the tuned model beside another's, row by row: which are wrong, which one of them gained or lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from luthier.core.errors import UsageError
from luthier.evaluate import report
from luthier.evaluate.report import Prediction
from luthier.runs.store import RunFolder

Which = Literal["all", "wrong", "right", "gained", "lost"]
"""By the first evaluation's score; gained: the first is right where the other is not, and lost the other way round."""
WHICH: tuple[Which, ...] = get_args(Which)
A_PAGE = 25


class Asked(BaseModel):
    """What the reader wants to see, as the address has it."""

    model_config = ConfigDict(frozen=True)

    evaluation: str = "tuned"
    beside: str = "base"
    which: Which = "all"
    group: str = ""
    """Empty: all groups."""
    text: str = ""
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One row: the answer, and the other's where it was asked the same."""

    answer: Prediction
    beside: Prediction | None

    def is_(self, which: Which) -> bool:
        """Whether it is one of these."""
        right = self.answer.score >= 1
        other = self.beside is not None and self.beside.score >= 1
        match which:
            case "wrong":
                return not right
            case "right":
                return right
            case "gained":
                return right and self.beside is not None and not other
            case "lost":
                return not right and other
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A page of pairs, and what can be chosen."""

    pairs: Sequence[Pair]
    num: int
    """Of all that were asked for."""
    counts: Mapping[Which, int]
    """How many there are of each of WHICH, of the group and text that were asked for."""
    groups: Sequence[str]
    evaluations: Sequence[str]


def answers(run: RunFolder, asked: Asked) -> Answers:
    """The rows that were asked for; raises UsageError where the run was not evaluated."""
    kept = sorted(path.parent.name for path in run.path.glob("evaluations/*/scores.json"))
    if asked.evaluation not in kept:
        what = f"run {run.name} has no evaluation {asked.evaluation!r:.40}"
        raise UsageError(what, change=f"there are: {', '.join(kept)}" if kept else f"luthier evaluate {run.name} makes one")
    own = _rows(run, asked.evaluation)
    other = {row.task + row.row: row for row in _rows(run, asked.beside)} if asked.beside in kept else {}
    pairs = [Pair(answer=row, beside=other.get(row.task + row.row)) for row in own]
    groups = sorted({pair.answer.group for pair in pairs})
    pairs = [pair for pair in pairs if asked.group in ("", pair.answer.group) and _holds(pair, asked.text.lower())]
    wanted = [pair for pair in pairs if pair.is_(asked.which)]
    counts = {which: sum(pair.is_(which) for pair in pairs) for which in WHICH}
    start = max(0, asked.start)
    return Answers(pairs=wanted[start : start + A_PAGE], num=len(wanted), counts=counts, groups=groups, evaluations=kept)


def _rows(run: RunFolder, evaluation: str) -> list[Prediction]:
    return [row for rows in report.read(run.evaluation(evaluation)).predictions.values() for row in rows]


def _holds(pair: Pair, text: str) -> bool:
    """Whether question, reference or answer holds the text."""
    said = (str(message.get("content", "")) for message in pair.answer.messages)
    return not text or any(text in part.lower() for part in (pair.answer.answer, pair.answer.reference, *said))

"""How often a run was decided about, each time with other answers or another baseline: looks.jsonl.

To ask again of the same is no new look. A look at more rows is one, and so is a trial against another baseline. What people say of answers
belongs to the look at these answers, when it is heard for the first time: of no interval have there been two looks then.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from luthier.core import jsonl
from luthier.core.finding import Finding
from luthier.runs.store import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The how manieth it is, against the how manieth baseline; and tasks of which it has fewer rows than one before."""

    number: int
    trial: int
    withdrawn: tuple[str, ...] = ()

    def findings(self) -> Iterator[Finding]:
        """What a reader of the verdict should know of it."""
        if self.number > 1:
            message = (
                f"this is look {self.number} at other answers: intervals are wider, so that all looks together err no more often than one"
            )
            yield Finding(code="looked_before", severity="note", message=message, evidence={"look": self.number})
        for task in self.withdrawn:
            message = f"{task} has fewer rows than at an earlier look: where rows are left out for their answers, no interval is valid"
            yield Finding(code="rows_withdrawn", severity="warn", message=message, evidence={"task": task})


def look(run: RunFolder, evidence: str, baseline: str, rows: Mapping[str, int]) -> Look:
    """The look that this evidence belongs to, counted before its verdict is known; `rows` of each task.

    The evidence is a digest of answers, or `DIGEST+DIGEST` with what people say of them.
    """
    before = jsonl.salvage(run.looks).records
    fewer = tuple(task for task, n in rows.items() if any(record["rows"].get(task, 0) > n for record in before))
    tried = list(dict.fromkeys([*(record["baseline"] for record in before), baseline]))
    known = {record["evidence"]: record["look"] for record in before if record["baseline"] == baseline}
    number = known.get(evidence) or _unheard(evidence, known) or 1 + max((record["look"] for record in before), default=0)
    if evidence not in known:
        jsonl.append(run.looks, {"look": number, "time": time.time(), "evidence": evidence, "baseline": baseline, "rows": dict(rows)})
    return Look(number=number, trial=tried.index(baseline) + 1, withdrawn=fewer)


def _unheard(evidence: str, known: Mapping[str, int]) -> int | None:
    """The look at the same answers, of which people had not said anything before."""
    answers, _, _ = evidence.partition("+")
    return None if any(each.startswith(f"{answers}+") for each in known) else known.get(answers)

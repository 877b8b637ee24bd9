"""Rules that look at evaluations: what a score on few rows is worth."""

from collections.abc import Iterator

from luthier.core.finding import Change, Finding
from luthier.core.words import count, percent
from luthier.watch.rules.case import Case, Rule, Scored

WIDE = 0.98
"""A perfect score whose 95 % interval begins below this says little: 183 rows without an error begin at 98 %."""


def perfect_on_few(case: Case) -> Iterator[Finding]:
    """Every answer was right, on rows too few to say so.

    Severity: note.

    All rows of a task were right, and the exact 95 % interval (Clopper–Pearson) of that score still begins below 98 %.

    Arithmetic: 20 of 20 right is 83 to 100 %; 100 of 100 is 96 to 100 %; from 183 rows on it begins at 98 %.

    What to do: ask all test rows; keep more rows for testing. And look at the answers: rows that stand in training too are answered by
    heart.

    Source: seed 003, "100% accuracy on small validation set" (docs/notes/seeds.md); Clopper and Pearson 1934.
    """
    for scored in case.scores:
        if scored.value < 1 or scored.n == 0 or scored.low >= WIDE:
            continue
        yield Finding(
            code="perfect-on-few",
            severity="note",
            message=f"{scored.evaluation}: {scored.task}.{scored.metric} is 100 % of {count(scored.n, 'row')}, "
            f"which is {percent(scored.low)} … 100 % (95 %)",
            evidence={"task": scored.task, "n": scored.n, "low": round(scored.low, 4), "evaluation": scored.evaluation},
            changes=tuple(_more_rows(case, scored)),
        )


RULES: tuple[Rule, ...] = (perfect_on_few,)


def _more_rows(case: Case, scored: Scored) -> Iterator[Change]:
    for place, task in enumerate(case.recipe.evaluation.tasks):
        if task.name == scored.task and task.limit != "all":
            yield Change(path=f"evaluation.tasks.{place}.limit", value="all", why="every row of the split is asked")

"""The recipe's judge at work: scores of answers, and which of two is better."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core import files
from luthier.core.errors import UsageError
from luthier.core.progress import Progress
from luthier.flow.evaluating import Elsewhere, is_address, model_or_adapter, on_devices, tuned_by

if TYPE_CHECKING:
    from luthier.core.chat import Completer
    from luthier.core.finding import Finding
    from luthier.evaluate.report import Preference, Report
    from luthier.recipe.schema import Recipe
    from luthier.runs.store import RunFolder

KEPT = "preferences.json"


def judged(report: Report, recipe: Recipe, progress: Progress) -> Report:
    """The report, its `judge` tasks scored; as it is where there are none."""
    from luthier.evaluate import judge

    if not any(task.scorer == "judge" for task in recipe.evaluation.tasks):
        return report
    progress.say(f"judged by {recipe.evaluation.judge}")
    return judge.scored(report, recipe, _judge(recipe), progress)


def compared(tuned: Report, other: Report, recipe: Recipe, folder: Path, progress: Progress) -> Report:
    """The tuned model's report with what the judge prefers, of the tasks whose bounds say so; kept, and asked anew for other answers."""
    from luthier.evaluate import judge
    from luthier.evaluate.report import Judged

    of, kept = _digest(tuned, other, recipe), folder / KEPT
    if kept.exists() and (found := Judged.model_validate_json(kept.read_bytes())).of == of:
        return replace(tuned, preferences=found.tasks)
    judging, rubric = _judge(recipe), recipe.evaluation.rubric
    preferences: Mapping[str, tuple[Preference, ...]] = {
        task: tuple(judge.preferred(tuned.predictions[task], other.predictions.get(task, ()), rubric, judging, progress))
        for task in sorted(recipe.decision.judged)
    }
    with files.told("preferences", folder):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(kept, Judged(of=of, tasks=preferences).model_dump(mode="json"))
    return replace(tuned, preferences=preferences)


def beside_people(run: RunFolder, judged: Report) -> tuple[Finding, ...]:
    """How far the judge agrees with people, on rows that they have rated beside the untuned model's; nothing where there are none."""
    from luthier.core import jsonl
    from luthier.core.finding import Finding
    from luthier.flow.reviewing import rated_pairs

    said = {jsonl.dumps([each.pair.origin, each.pair.messages, each.pair.reference]): each.preference for each in rated_pairs(run)}
    found = []
    for task, rows in judged.preferences.items():
        both = {row.row: (row.value, said[row.row]) for row in rows if row.row in said}
        if not both:
            continue
        alike = sum(judge == people for judge, people in both.values())
        message = f"{task}: judge and people say the same of {alike} of {len(both)} rows that both judged; {_alpha(both)}"
        found.append(Finding(code="judge_beside_people", severity="note", message=message, evidence={"rows": len(both), "same": alike}))
    return tuple(found)


def _alpha(both: Mapping[str, tuple[float, float]]) -> str:
    """Of judge and people, in words."""
    from luthier.review.agreement import Opinion, agreement

    judge = [Opinion(reviewer="judge", of=row, value=value) for row, (value, _) in both.items()]
    people = [Opinion(reviewer="people", of=row, value=value) for row, (_, value) in both.items()]
    try:
        alpha = agreement([*judge, *people]).alpha
    except UsageError as error:  # without the extra `review`; a verdict does not fail for want of a note
        return error.what
    return "which are too alike for an alpha" if alpha is None else f"Krippendorff's alpha is {alpha:.2f}"


def _judge(recipe: Recipe) -> Completer:
    """The recipe's: a server, a run, or a model."""
    from luthier.runs.store import find, own_recipe

    name = recipe.evaluation.judge
    if is_address(name):
        return Elsewhere(name=name).completer(recipe)
    try:
        run = find(name)
    except UsageError:
        return on_devices(model_or_adapter(name, recipe))
    return on_devices(tuned_by(run, own_recipe(run)))


def _digest(tuned: Report, other: Report, recipe: Recipe) -> str:
    answers = [(row.row, row.answer) for report in (tuned, other) for rows in report.predictions.values() for row in rows]
    return hashlib.sha256(repr((answers, recipe.evaluation.judge, recipe.evaluation.rubric)).encode()).hexdigest()[:16]

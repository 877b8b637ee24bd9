"""Whether a run is good enough: evaluate and decide."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core import files
from luthier.core.errors import UsageError
from luthier.core.progress import Progress
from luthier.evaluate.options import AS_THE_RECIPE, Options
from luthier.flow.evaluating import Elsewhere, evaluated, is_address, model_or_adapter, timed, tuned_by
from luthier.flow.judging import beside_people, compared, judged
from luthier.flow.planning import SILENT
from luthier.flow.reporting import report
from luthier.flow.reviewing import people

if TYPE_CHECKING:
    from luthier.evaluate.gate import Baseline, Verdict
    from luthier.evaluate.report import InTurn, Report
    from luthier.evaluate.run import Subject
    from luthier.recipe.proof import BaselineMetric
    from luthier.recipe.schema import Recipe
    from luthier.runs.store import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """An evaluation and the folder it is kept in."""

    folder: Path
    report: Report


def evaluate(
    name: str,
    options: Options = AS_THE_RECIPE,
    recipe: Recipe | None = None,
    progress: Progress = SILENT,
) -> Evaluated:
    """Answers of a run, a model, an adapter folder or a server to the recipe's tasks, scored and measured.

    A run brings its recipe, or is asked another's tasks on that one's data, and keeps the evaluation in its folder; all else needs a
    recipe, and the evaluation is kept in `runs/evaluations/`. A run's name goes before a model's.
    """
    from luthier.runs.store import find, own_recipe, runs_root

    if is_address(name):
        if recipe is None:
            raise UsageError("a server knows no tasks", change="give --recipe, for data and tasks")
        folder = runs_root() / "evaluations" / (_as_a_name(name) + options.suffix)
        return _evaluated(Elsewhere(name=name, typed=True), options.apply(recipe), folder, progress)
    try:
        run = find(name)
    except UsageError as error:
        if recipe is None:
            change = f"{error.change}; a model or an adapter folder needs --recipe, for data and tasks"
            raise UsageError(error.what, change=change) from error
    else:
        own = own_recipe(run)
        asked, kept = (own, "tuned") if recipe is None else (_asked_of(own, recipe), f"tuned-on-{recipe.name}")
        found = _evaluated(tuned_by(run, asked), options.apply(asked), run.evaluation(kept + options.suffix), progress)
        report(str(run.path))
        return found
    folder = runs_root() / "evaluations" / (_as_a_name(name) + options.suffix)
    return _evaluated(model_or_adapter(name, recipe), options.apply(recipe), folder, progress)


def decide(name: str, baseline: str = "recipe", progress: Progress = SILENT) -> Verdict:
    """The verdict on a run by its recipe's rule, against the recipe's baseline or another; evaluations that are missing are made.

    It is kept in verdict.json, and shown with all else in report.html. What was never looked at before is counted in looks.jsonl, and
    judged so that all looks together err no more often than the rule's confidence has it.
    """
    from luthier.evaluate import gate
    from luthier.runs import looks
    from luthier.runs.store import find, own_recipe

    run = find(name)
    recipe = own_recipe(run)
    wanted = recipe.evaluation.baseline if baseline == "recipe" else baseline
    tuned = _kept_or_made(tuned_by(run, recipe), recipe, run.evaluation("tuned"), progress)
    against = _against(wanted, run, recipe, progress)
    base: Baseline | None = None
    if recipe.decision.compares_with("base"):
        base = against if wanted == "base" else _against("base", run, recipe, progress)
    if recipe.decision.judged:
        tuned = compared(tuned, _answers_of(against), recipe, run.evaluation(f"judged-{_as_a_name(str(wanted))}"), progress)
    rows = {task: scores.n for task, scores in tuned.scores.tasks.items()}
    if recipe.asks_people:  # who compare the answers with the base's, whatever the baseline is
        _kept_or_made(model_or_adapter(recipe.model.base, recipe), recipe, run.evaluation("base"), progress)
    said = people(run, recipe)
    with files.told(run.looks.name, run.path):
        look = looks.look(run, gate.evidence(tuned, against, *([base] if base else []), people=said), str(wanted), rows)
    reviewed = gate.Reviewed(report=tuned, people=said)
    verdict = gate.decide(reviewed, against, recipe.decision, base=base, look=look.number, trial=look.trial)
    verdict = replace(verdict, findings=(*look.findings(), *(beside_people(run, tuned) if wanted == "base" else ()), *verdict.findings))
    with files.told(run.verdict.name, run.path):
        verdict.write(run.verdict)
    report(str(run.path))
    return verdict


def kept_report(folder: Path) -> Report:
    """An evaluation that was kept: `runs/NAME/evaluations/…`, or a scores.json."""
    from luthier.evaluate import report

    return report.read(folder)


def _asked_of(own: Recipe, other: Recipe) -> Recipe:
    """Another recipe's data and tasks for a run's model, in the run's own chat template unless the other names one."""
    kept = {"base": own.model.base, "revision": own.model.revision}
    if other.model.chat_template == "auto":
        kept["chat_template"] = own.model.chat_template
    return other.model_copy(update={"model": other.model.model_copy(update=kept), "lora": own.lora})


def _evaluated(subject: Subject | Elsewhere, recipe: Recipe, folder: Path, progress: Progress) -> Evaluated:
    from luthier.data.prepare import prepare

    progress.say(f"evaluating {subject.name}")
    report = judged(evaluated(subject, recipe, prepare(recipe, progress), folder, progress), recipe, progress)
    with files.told("the evaluation", folder):
        report.write(folder)
    return Evaluated(folder=folder, report=report)


def _kept_or_made(subject: Subject | Elsewhere, recipe: Recipe, folder: Path, progress: Progress) -> Report:
    """A run's recipe never changes, so what was evaluated once by it stands, unless the rows themselves changed."""
    from luthier.data.prepare import prepare
    from luthier.data.questions import asked_hash

    if (folder / "scores.json").exists():
        kept = kept_report(folder)
        if kept.scores.data_hash == asked_hash(prepare(recipe, progress).summary.hash, recipe.evaluation.tasks):
            return kept
    return _evaluated(subject, recipe, folder, progress).report


def _against(wanted: str | Mapping[str, BaselineMetric], run: RunFolder, recipe: Recipe, progress: Progress) -> Baseline:
    """What the run is compared with: numbers, or a report on this run's own rows; times in turn with it, where the rule compares times."""
    from luthier.runs.store import find, own_recipe

    if not isinstance(wanted, str):
        return wanted
    if wanted != "base" and Path(wanted).is_file():
        return kept_report(Path(wanted))
    if is_address(wanted):
        return _beside(
            Elsewhere(name=wanted, typed=wanted != recipe.evaluation.baseline), f"against-{_as_a_name(wanted)}", run, recipe, progress
        )
    if wanted == "base":
        return _beside(model_or_adapter(recipe.model.base, recipe), "base", run, recipe, progress)
    other = find(wanted)
    return _beside(tuned_by(other, own_recipe(other)), f"against-{other.name}", run, recipe, progress)


def _beside(subject: Subject | Elsewhere, name: str, run: RunFolder, recipe: Recipe, progress: Progress) -> Baseline:
    """Its report, kept in the run's folder by this name; and where the rule compares times, both's."""
    from luthier.evaluate.gate import Beside

    made = _kept_or_made(subject, recipe, run.evaluation(name), progress)
    if not recipe.decision.compares_times or not recipe.evaluation.timed:
        return made
    times = _kept_or_timed(tuned_by(run, recipe), subject, recipe, run.evaluation(f"in-turn-{name}"), progress)
    return Beside(report=made, times=times)


def _answers_of(baseline: Baseline) -> Report:
    """Those that a judge compares; raises UsageError for a baseline of which only numbers are known."""
    from luthier.evaluate.gate import Beside

    if isinstance(baseline, Mapping):
        what = "a judge compares answers, and of the baseline only numbers are known"
        raise UsageError(what, change="name a baseline that answers, or take the bound on what is judged out")
    return baseline.report if isinstance(baseline, Beside) else baseline


def _as_a_name(name: str) -> str:
    """As a folder may be called."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def _kept_or_timed(tuned: Subject, other: Subject | Elsewhere, recipe: Recipe, folder: Path, progress: Progress) -> InTurn:
    from luthier.data.prepare import prepare
    from luthier.data.questions import asked_hash
    from luthier.evaluate.report import InTurn

    kept, prepared = folder / "latency.json", prepare(recipe, progress)
    if kept.exists():
        found = InTurn.model_validate_json(kept.read_bytes())
        if found.data_hash == asked_hash(prepared.summary.hash, recipe.evaluation.tasks):
            return found
    progress.say(f"timing {tuned.name} and {other.name} in turn")
    found = timed(tuned, other, recipe, prepared, progress)
    with files.told("times", folder):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(kept, found.model_dump(mode="json"))
    return found

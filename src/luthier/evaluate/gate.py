"""The verdict: deploy, iterate, abort, or not enough data. Light, and it decides from files alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.core import files
from luthier.core.errors import RecipeError
from luthier.core.finding import Finding
from luthier.evaluate import bounds, metrics
from luthier.evaluate.bounds import Judgement
from luthier.evaluate.metrics import Measurement
from luthier.evaluate.report import Prediction, Report
from luthier.recipe.proof import BaselineMetric, Decision

Choice = Literal["deploy", "iterate", "abort", "not_enough_data"]
Baseline = Report | Mapping[str, BaselineMetric]
"""Another evaluation, or numbers from a report; an empty mapping where there is nothing to compare with."""

EXIT_CODES: dict[Choice, int] = {"deploy": 0, "iterate": 10, "abort": 11, "not_enough_data": 12}
FEW_ROWS = 100  # a perfect score on fewer may hide more than 3.6 % of errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision, a sentence for each bound with what decided first, and what else should be known."""

    decision: Choice
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """What `luthier decide` exits with."""
        return EXIT_CODES[self.decision]

    def to_json(self) -> dict[str, Any]:
        """The verdict as it stands in verdict.json."""
        findings = [finding.to_json() for finding in self.findings]
        return {"decision": self.decision, "reasons": list(self.reasons), "findings": findings}

    def write(self, path: Path) -> None:
        """Write verdict.json."""
        files.write_json(path, self.to_json())


def decide(tuned: Report, baseline: Baseline, decision: Decision) -> Verdict:
    """Apply the recipe's rule to what was measured.

    Abort when there are abort bounds and all are shown to hold; iterate when a deploy bound is shown to be violated; deploy when
    all deploy bounds are shown to hold; else there is not enough data. Without deploy bounds, every task must be better than the
    baseline. Each bound is judged at `confidence`; that all must hold needs no correction for their number (intersection–union).
    """
    rule = decision.deploy or {f"{name}.{task.metric}": "better than baseline" for name, task in tuned.scores.tasks.items()}
    known = metrics.measurements(tuned)
    _refuse_unknown(baseline, known)
    if wrong := [metric for metric, text in decision.abort.items() if bounds.is_comparison(text)]:
        raise RecipeError(
            "aborting because the result is better makes no sense", where=f"decision.abort.{wrong[0]}", change="give a number, e.g. '< 0.5'"
        )
    deploy = [_judge(metric, text, f"decision.deploy.{metric}", tuned, baseline, decision) for metric, text in rule.items()]
    abort = [_judge(metric, text, f"decision.abort.{metric}", tuned, baseline, decision) for metric, text in decision.abort.items()]
    outcomes = {judgement.outcome for judgement in deploy}
    if abort and all(judgement.outcome == "holds" for judgement in abort):
        return _verdict("abort", [*abort, *deploy], "holds", tuned)
    if "violated" in outcomes:
        return _verdict("iterate", deploy, "violated", tuned)
    if outcomes == {"holds"}:
        return _verdict("deploy", deploy, "holds", tuned)
    return _verdict("not_enough_data", deploy, "undecided", tuned)


def _judge(metric: str, text: str, where: str, tuned: Report, baseline: Baseline, decision: Decision) -> Judgement:
    measured = metrics.find(metric, metrics.measurements(tuned), where)
    if not bounds.is_comparison(text):
        return bounds.judge_number(measured, bounds.parse(text, measured, where), decision.confidence)
    other = _of_baseline(baseline, measured)
    if other is None:
        return bounds.not_compared(metric)
    rows = (_predictions(tuned, metric), _predictions(baseline, metric) if isinstance(baseline, Report) else ())
    return bounds.judge_against(measured, other, rows, decision.confidence)


def _predictions(report: Report, metric: str) -> Sequence[Prediction]:
    """The rows behind `TASK.SCORER`; a metric that is not a task's has none."""
    task, dot, _ = metric.partition(".")
    return report.predictions.get(task, ()) if dot else ()


def _of_baseline(baseline: Baseline, measured: Measurement) -> Measurement | None:
    """The baseline's measurement of the same metric, if it has one."""
    if isinstance(baseline, Report):
        return metrics.measurements(baseline).get(measured.metric)
    return measured.as_baseline(baseline[measured.metric]) if measured.metric in baseline else None


def _refuse_unknown(baseline: Baseline, known: Mapping[str, Measurement]) -> None:
    """A misspelt metric among a baseline's numbers would silently never be compared."""
    for metric in baseline if not isinstance(baseline, Report) else ():
        if metric not in metrics.FIXED:
            metrics.find(metric, known, "evaluation.baseline")


def _verdict(choice: Choice, judged: list[Judgement], decisive: bounds.Outcome, tuned: Report) -> Verdict:
    ordered = sorted(judged, key=lambda judgement: judgement.outcome != decisive)
    reasons = tuple(judgement.reason for judgement in ordered) or ("there is no bound and no task, so nothing was compared",)
    findings = [finding for judgement in ordered for finding in judgement.findings]
    return Verdict(decision=choice, reasons=reasons, findings=(*findings, *_about_tasks(tuned)))


def _about_tasks(tuned: Report) -> list[Finding]:
    """What a reader of the scores should know whatever the bounds say."""
    findings = []
    for name, task in tuned.scores.tasks.items():
        if task.value == 1 and task.n < FEW_ROWS:
            low = metrics.show(task.low, "share")
            message = f"{name}.{task.metric}: all of {task.n} rows are right, which on so few rows shows only {low} or more"
            findings.append(
                Finding(code="perfect_on_few_rows", severity="warn", message=message, evidence={"rows": task.n, "low": task.low})
            )
        if task.cut:
            message = f"{name}: {task.cut} of {task.n} answers were cut at max_new_tokens and scored as they are"
            findings.append(Finding(code="answers_cut", severity="warn", message=message, evidence={"cut": task.cut, "rows": task.n}))
    return findings

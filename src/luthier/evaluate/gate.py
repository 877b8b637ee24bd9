"""The verdict: deploy, iterate, abort, or not enough data. Light, and it decides from files alone."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.core import files
from luthier.core.finding import Finding
from luthier.evaluate import bounds, comparison, metrics
from luthier.evaluate.comparison import Comparison
from luthier.evaluate.judgement import Judgement, Outcome, unrated
from luthier.evaluate.metrics import Measurement
from luthier.evaluate.people import NOBODY, People
from luthier.evaluate.report import InTurn, Report
from luthier.recipe.proof import PEOPLE, BaselineMetric, Decision
from luthier.score.sequence import Level

Choice = Literal["deploy", "iterate", "abort", "not_enough_data"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Another evaluation, and the times of its single answers and the tuned model's, taken in turn."""

    report: Report
    times: InTurn


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """The tuned model's evaluation, and what people said of its answers."""

    report: Report
    people: People


Baseline = Report | Beside | Mapping[str, BaselineMetric]
"""Another evaluation, or numbers from a report; an empty mapping where there is nothing to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What the tuned model is compared with: its measurements, or its numbers; and the tuned model's own that belong to them."""

    known: Mapping[str, Measurement]
    numbers: Mapping[str, BaselineMetric]
    own: Mapping[str, Measurement]

    def pair(self, measured: Measurement) -> tuple[Measurement, Measurement | None]:
        """The measurement and the other's of the same metric, if it has one; times as they were taken in turn, if they were."""
        metric = measured.metric
        if metric in self.numbers:
            return measured, measured.as_baseline(self.numbers[metric])
        return self.own.get(metric, measured), self.known.get(metric)


EXIT_CODES: dict[Choice, int] = {"deploy": 0, "iterate": 10, "abort": 11, "not_enough_data": 12}
NOT_WORSE = Comparison(text="not worse than before", claim="not worse", other="baseline", least=0.0, factor=1.0)
"""What is asked of every group."""
FEW_ROWS = 100  # a perfect score on fewer may hide more than 3.6 % of errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision, a sentence for each bound with what decided first, the numbers behind them, and what else should be known."""

    decision: Choice
    judgements: tuple[Judgement, ...]
    findings: tuple[Finding, ...]
    look: int = 1
    """The how manieth look at other answers this is."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """A sentence for each bound."""
        return tuple(judged.reason for judged in self.judgements) or ("there is no bound and no task, so nothing was compared",)

    @property
    def more_rows(self) -> float:
        """Rows that are missing to decide with 80 % probability; 0 where it is decided, infinite where no number is known to do."""
        if self.decision != "not_enough_data":
            return 0
        missing = [judged.more_rows or math.inf for judged in self.judgements if judged.outcome == "undecided"]
        return max(missing, default=math.inf)

    @property
    def exit_code(self) -> int:
        """What `luthier decide` exits with."""
        return EXIT_CODES[self.decision]

    def to_json(self) -> dict[str, Any]:
        """The verdict as it stands in verdict.json."""
        return {
            "decision": self.decision,
            "reasons": list(self.reasons),
            "findings": [finding.to_json() for finding in self.findings],
            "bounds": [judged.to_json() for judged in self.judgements],
            "look": self.look,
            "more_rows": self.more_rows if math.isfinite(self.more_rows) else None,
        }

    def write(self, path: Path) -> None:
        """Write verdict.json."""
        files.write_json(path, self.to_json())


def decide(
    tuned: Report | Reviewed, baseline: Baseline, decision: Decision, *, base: Baseline | None = None, look: int = 1, trial: int = 1
) -> Verdict:
    """Apply the recipe's rule to what was measured; `base` is the untuned model's, where the rule compares with it.

    Abort when there are abort bounds and all are shown to hold; iterate when a deploy bound is shown to be violated; deploy when
    all deploy bounds are shown to hold and people have rated the rows they have to; else there is not enough data. Without deploy
    bounds, every task must be better than the baseline. Each bound is judged at `confidence`: that all must hold needs no correction for
    their number (intersection–union), that one is violated does, and has Holm's. From the second look on, intervals are wider, and of
    each `trial` of another baseline.
    """
    tuned, people = (tuned.report, tuned.people) if isinstance(tuned, Reviewed) else (tuned, NOBODY)
    rule = decision.deploy or {f"{name}.{task.metric}": "better than baseline" for name, task in tuned.scores.tasks.items()}
    known = {**metrics.measurements(tuned), **people.measured}
    _refuse_unknown(baseline, known)
    others = {"baseline": _side(baseline), "base": _side({} if base is None else base)}
    level = Level(confidence=decision.confidence, look=look, trial=trial)

    def judge(metric: str, at: Level) -> Judgement:
        return _judge(metrics.find(metric, known, f"decision.deploy.{metric}"), rule[metric], f"decision.deploy.{metric}", others, at)

    deploy = {metric: judge(metric, level) for metric in rule}
    deploy |= unconfirmed(deploy, judge, level)
    deploy |= {judgement.metric: judgement for judgement in people.demanded()}
    abort = [
        _judge(metrics.find(metric, known, f"decision.abort.{metric}"), text, f"decision.abort.{metric}", others, level)
        for metric, text in decision.abort.items()
    ]
    outcomes = {judgement.outcome for judgement in deploy.values()}
    against = others["baseline" if others["baseline"].known else "base"]
    groups = {metric: against.pair(known[metric]) for metric in _of_groups(tuned) if metric in known}
    about = (*_worse_groups(groups, level), *_about_tasks(tuned))
    if abort and all(judgement.outcome == "holds" for judgement in abort):
        return _verdict("abort", [*abort, *deploy.values()], "holds", about, look)
    if "violated" in outcomes:
        return _verdict("iterate", [*deploy.values()], "violated", about, look)
    if outcomes == {"holds"}:
        return _verdict("deploy", [*deploy.values()], "holds", about, look)
    return _verdict("not_enough_data", [*deploy.values()], "undecided", about, look)


def evidence(tuned: Report, *others: Baseline, people: People = NOBODY) -> str:
    """A digest of the answers and times that a verdict rests on, and after a `+` one of what people say: another one is another look."""
    parts = [tuned.scores.model_dump_json()]
    parts += [row.model_dump_json() for rows in tuned.preferences.values() for row in rows]
    for other in others:
        if isinstance(other, Beside):
            parts += [other.report.scores.model_dump_json(), other.times.model_dump_json()]
        elif isinstance(other, Report):
            parts.append(other.scores.model_dump_json())
        else:
            parts.append(repr(sorted((metric, number.value, number.n) for metric, number in other.items())))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16] + people.evidence


def unconfirmed(judged: Mapping[str, Judgement], judge: Callable[[str, Level], Judgement], level: Level) -> dict[str, Judgement]:
    """Bounds that are violated when looked at alone, but not among all of them, as they then stand (Holm 1979).

    Of m bounds those that are violated at 1 − (1 − confidence) / m are; the others are judged again among those that are left.
    """
    left = set(judged)
    while left:
        again = {metric: judge(metric, level.among(len(left))) for metric in left if judged[metric].outcome == "violated"}
        found = {metric for metric, judgement in again.items() if judgement.outcome == "violated"}
        if not found:
            return again
        left -= found
    return {}


def _judge(measured: Measurement, text: str, where: str, others: Mapping[str, Side], level: Level) -> Judgement:
    if measured.metric.startswith(f"{PEOPLE}.") and not measured.n:
        return unrated(measured.metric, text)
    if not comparison.is_comparison(text):
        return bounds.judge_number(measured, bounds.parse(text, measured, where), level)
    wanted = comparison.parse(text, measured, where)
    own, other = others[wanted.other].pair(measured)
    if other is None:
        return comparison.not_compared(measured.metric, wanted)
    return comparison.judge_against(own, other, wanted, level)


def _side(other: Baseline) -> Side:
    if isinstance(other, Beside):
        own, its = metrics.times(other.times.tuned), metrics.times(other.times.other)
        both = own.keys() & its.keys()
        known = metrics.measurements(other.report) | {metric: its[metric] for metric in both}
        return Side(known=known, numbers={}, own={metric: own[metric] for metric in both})
    if isinstance(other, Report):
        return Side(known=metrics.measurements(other), numbers={}, own={})
    return Side(known={}, numbers=other, own={})


def _refuse_unknown(baseline: Baseline, known: Mapping[str, Measurement]) -> None:
    """A misspelt metric among a baseline's numbers would silently never be compared."""
    for metric in baseline if isinstance(baseline, Mapping) else ():
        if metric not in metrics.FIXED:
            metrics.find(metric, known, "evaluation.baseline")


def _verdict(choice: Choice, judged: list[Judgement], decisive: Outcome, about: tuple[Finding, ...], look: int) -> Verdict:
    ordered = sorted(judged, key=lambda judgement: judgement.outcome != decisive)
    findings = tuple(finding for judgement in ordered for finding in judgement.findings)
    return Verdict(decision=choice, judgements=tuple(ordered), findings=(*findings, *about), look=look)


def _of_groups(tuned: Report) -> list[str]:
    return [f"{name}.{task.metric}@{group}" for name, task in tuned.scores.tasks.items() for group in task.groups]


def _worse_groups(sides: Mapping[str, tuple[Measurement, Measurement | None]], level: Level) -> Iterator[Finding]:
    """Groups of rows that got worse than the baseline's, or the base's, by Holm's test over all of them."""

    def judge(metric: str, at: Level) -> Judgement:
        own, other = sides[metric]
        return comparison.judge_against(own, other, NOT_WORSE, at) if other else comparison.not_compared(metric, NOT_WORSE)

    judged = {metric: judge(metric, level) for metric in sides}
    spared = unconfirmed(judged, judge, level)
    for metric, judgement in judged.items():
        if judgement.outcome == "violated" and metric not in spared and judgement.difference:
            change = judgement.difference.interval
            task, _, group = metric.partition("@")
            yield Finding(
                code="group_worse",
                severity="warn",
                message=f"{group} got worse: {judgement.reason}",
                evidence={"metric": task, "group": group, "difference": change.value, "low": change.low, "high": change.high},
            )


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
        if task.unread:
            message = f"{name}: of {task.unread} of {task.n} answers the judge said nothing that can be read; they count as its worst score"
            evidence: dict[str, float | int | str] = {"unread": task.unread, "rows": task.n}
            findings.append(Finding(code="judgements_unread", severity="warn", message=message, evidence=evidence))
        if task.cut:
            message = f"{name}: {task.cut} of {task.n} answers were cut at max_new_tokens and scored as they are"
            findings.append(Finding(code="answers_cut", severity="warn", message=message, evidence={"cut": task.cut, "rows": task.n}))
    for name, rows in tuned.preferences.items():
        if unread := sum("unread" in row.verdicts for row in rows):
            message = f"{name}: on {unread} of {len(rows)} rows the judge said nothing that can be read; they count as ties"
            findings.append(
                Finding(code="judgements_unread", severity="warn", message=message, evidence={"unread": unread, "rows": len(rows)})
            )
    return findings

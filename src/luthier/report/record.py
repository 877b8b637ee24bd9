"""Record: everything that a run's folder tells a reader, each part as far as it is there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from luthier.core.finding import Finding
from luthier.evaluate.gate import Choice
from luthier.evaluate.report import Scores
from luthier.runs.planned import Part, Planned
from luthier.runs.status import Status
from luthier.runs.store import RunFolder
from luthier.runs.summary import DataSummary
from luthier.watch.rules import GRAVITY
from luthier.watch.rules.case import newest_ranks
from luthier.watch.seen import Seen
from luthier.watch.series import Series

Read = TypeVar("Read", bound=BaseModel)


class Environment(Part):
    """environment.json."""

    python: str
    platform: str
    packages: Mapping[str, str]
    hardware: Mapping[str, Any]
    data_hash: str
    template_hash: str
    command: str
    git_commit: str = ""


class Verdict(Part):
    """verdict.json."""

    decision: Choice
    reasons: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """One run for a reader. What is not there yet is None, or empty."""

    run: RunFolder
    status: Status
    series: Series = field(default_factory=Series)
    findings: tuple[Finding, ...] = ()
    """Of its status, the gravest first."""
    events: Sequence[Mapping[str, Any]] = ()
    ranks: Sequence[Mapping[str, Any]] = ()
    """The newest line of each in ranks.jsonl."""
    plan: Planned | None = None
    data: DataSummary | None = None
    environment: Environment | None = None
    verdict: Verdict | None = None
    evaluations: Mapping[str, Scores] = field(default_factory=dict)
    recipe: str = ""
    damaged: tuple[str, ...] = ()
    """Files that are there and cannot be read."""


def record(seen: Seen, status: Status, *, measured: bool) -> Record:
    """What the run's folder tells beside where it stands, with what it has `measured` or, at once, without."""
    run, damaged = seen.run, list[str]()
    if measured and not status.diagnosed:  # then nothing was found in the curves
        damaged.append(run.recipe.name)
    return Record(
        run=run,
        status=status,
        series=seen.series() if measured else Series(),
        findings=tuple(sorted(status.findings, key=lambda each: GRAVITY.index(each.severity))),
        events=seen.events(),
        ranks=list({line["rank"]: line for line in newest_ranks(run.ranks)}.values()),
        plan=_read(run.plan, Planned, damaged),
        data=_read(run.data, DataSummary, damaged),
        environment=_read(run.environment, Environment, damaged),
        verdict=_read(run.verdict, Verdict, damaged),
        evaluations=evaluations(run, damaged),
        recipe=run.recipe_text,
        damaged=tuple(damaged),
    )


def evaluations(run: RunFolder, damaged: list[str]) -> Mapping[str, Scores]:
    """The scores of each evaluation in the folder: the tuned model's first, then the base's; files that cannot be read are noted."""
    paths = sorted(run.path.glob("evaluations/*/scores.json"), key=lambda path: ("tuned", "base", path.parent.name).index(path.parent.name))
    read = {path.parent.name: _read(path, Scores, damaged) for path in paths}
    return {name: scores for name, scores in read.items() if scores is not None}


def _read(path: Path, kind: type[Read], damaged: list[str]) -> Read | None:
    """What a file says; None where there is none, and where it is of another version or damaged, which is noted."""
    try:
        return kind.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, ValidationError):
        damaged.append(path.name)
        return None

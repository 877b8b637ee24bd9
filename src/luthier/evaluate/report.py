"""What an evaluation leaves behind: scores.json and predictions.jsonl, as types. Light: read by gate, compare and pages."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from luthier.core import files, jsonl
from luthier.core.errors import RunError, UsageError
from luthier.core.redact import redact, redacted
from luthier.score.intervals import Interval

STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


def _unbounded(stored: Any) -> Any:
    """JSON has no infinity: an end that is null is open, a value that is null was not a number."""
    if isinstance(stored, dict):
        filled = {"value": math.nan, "low": -math.inf, "high": math.inf}
        return {key: filled[key] if value is None and key in filled else value for key, value in stored.items()}
    return stored


Estimate = Annotated[Interval, BeforeValidator(_unbounded)]
Number = Annotated[float, BeforeValidator(lambda stored: math.nan if stored is None else stored)]
"""NaN where it was not measured, which JSON writes as null."""
Told = Annotated[str, AfterValidator(redact)]
"""Text of a row, or of an answer to it: redacted, so that no row's secret gets into a run folder. It was scored as it was."""


class Prediction(BaseModel):
    """One row of a task: what was asked, expected, answered, all redacted. `seconds` count from when its batch was asked."""

    model_config = STRICT

    task: str
    origin: str
    group: str
    messages: Annotated[tuple[Mapping[str, Any], ...], AfterValidator(lambda messages: tuple(redacted(messages)))]
    reference: Told
    answer: Told
    score: float
    tokens: int
    stopped: bool
    seconds: float
    key: str = ""
    """Rows of one key (`data.keep_together`, as a digest) are not independent; empty where that is not known."""

    @cached_property
    def row(self) -> str:
        """What makes it the same question in another evaluation: origin, prompt and reference."""
        return jsonl.dumps([self.origin, self.messages, self.reference])


class Preference(BaseModel):
    """A judge on two answers to one row: 1 where it prefers the tuned model's in both orders, 0 where the other's, else 0.5."""

    model_config = STRICT

    row: str
    key: str
    value: float
    verdicts: tuple[str, ...]
    """Of each order: A, B, tie, or unread; none where both answers are the same."""


class TaskScores(BaseModel):
    """One task: its mean score with a 95 % interval, the same per group, and how many answers `max_new_tokens` cut."""

    model_config = STRICT

    metric: str
    value: float
    low: float
    high: float
    n: int
    groups: Mapping[str, Estimate]
    cut: int
    unread: int = 0
    """Answers of which the judge said nothing that can be read: each counts as the worst score."""


class AnswerTime(BaseModel):
    """One answer made alone: seconds until its first token (NaN of a server that does not stream), and whole."""

    model_config = STRICT

    origin: str
    first_token_seconds: Number
    seconds: float
    tokens: int


class Times(BaseModel):
    """Seconds: mean, median and 95th percentile, each with its 95 % interval."""

    model_config = STRICT

    mean: Estimate
    p50: Estimate
    p95: Estimate


class Latency(BaseModel):
    """Rows answered one at a time after a warm-up: whole answers, first tokens, each further token; and the rows themselves."""

    model_config = STRICT

    answer: Times
    first_token: Times
    per_token: Times
    rows: tuple[AnswerTime, ...]


class RowLoss(BaseModel):
    """What one validation row lost: nats, over so many supervised tokens."""

    model_config = STRICT

    row: str
    """A digest of its tokens: what makes it the same row in another evaluation."""
    key: str
    nats: float
    tokens: int


class InTurn(BaseModel):
    """latency.json: single answers of the tuned model and of another to the same rows, in turn."""

    model_config = STRICT

    data_hash: str
    tuned: Latency
    other: Latency


class Loss(BaseModel):
    """Validation loss in nats per supervised token, over `tokens` tokens of `n` rows; and the rows themselves."""

    model_config = STRICT

    value: Number
    n: int
    tokens: int
    rows: tuple[RowLoss, ...] = ()


class Scores(BaseModel):
    """scores.json. What was not measured (a server tells no memory, data may have no validation rows) is null."""

    model_config = STRICT

    subject: str
    data_hash: str
    tasks: Mapping[str, TaskScores]
    loss: Loss | None = None
    latency: Latency | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One evaluation: its scores, and the predictions of each task behind them (none where only a scores.json was kept)."""

    scores: Scores
    predictions: Mapping[str, tuple[Prediction, ...]] = field(default_factory=dict)
    preferences: Mapping[str, tuple[Preference, ...]] = field(default_factory=dict)
    """By task, where a judge compared its answers with another's; kept beside that comparison."""

    def write(self, folder: Path) -> None:
        """Write predictions.jsonl, then scores.json: where there are scores the predictions are whole."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = (row for predictions in self.predictions.values() for row in predictions)
        files.write(folder / "predictions.jsonl", "".join(jsonl.dumps(row.model_dump(mode="json")) + "\n" for row in rows))
        files.write_json(folder / "scores.json", self.scores.model_dump(mode="json"))


class Judged(BaseModel):
    """preferences.json: a judge on a run's answers beside another's; `of` is a digest of both, the judge and the rubric."""

    model_config = STRICT

    of: str
    tasks: Mapping[str, tuple[Preference, ...]]


def read(path: Path) -> Report:
    """The evaluation in a folder, or beside a scores.json; raises where it is missing, of another version or torn."""
    place = path / "scores.json" if path.is_dir() else path
    if not place.exists():
        raise UsageError(f"no evaluation at {path}", change="run `luthier evaluate` first, or give a folder with scores.json in it")
    kept = place.with_name("predictions.jsonl")
    predictions: dict[str, list[Prediction]] = {}
    try:
        scores = Scores.model_validate_json(place.read_bytes())
        for record in jsonl.records(kept) if kept.exists() else ():
            row = Prediction.model_validate(record)
            predictions.setdefault(row.task, []).append(row)
    except (OSError, ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        raise RunError(
            f"this is not an evaluation that this version can read: {error}", where=str(place), change="evaluate again"
        ) from error
    for task, rows in predictions.items():
        if task not in scores.tasks or len(rows) != scores.tasks[task].n:
            raise RunError(
                f"the {len(rows)} predictions of task {task!r} are not those of scores.json", where=str(kept), change="evaluate again"
            )
    return Report(scores=scores, predictions={task: tuple(rows) for task, rows in predictions.items()})

"""Status: where one run stands, read from its folder and from nothing else; so a run on another machine with the same folder looks alike.

What a host says of a job that it was given (it waits, it is over) is added by `luthier.flow.status`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from luthier.core import jsonl
from luthier.core.finding import Finding
from luthier.runs.heartbeat import Phase
from luthier.runs.held_out import held_out
from luthier.runs.planned import Part, Planned
from luthier.runs.recent import Recent, recent
from luthier.runs.state import MOVING, State, standing
from luthier.runs.store import RunFolder

FINDING = TypeAdapter(Finding)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankNow:
    """What one rank does, or did last."""

    rank: int
    host: str
    phase: Phase
    step: int
    time: float
    """Of its last beat."""
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where a run stands. What nothing has told yet is None, or 0 where it is a step; times are in seconds since 1970."""

    name: str
    folder: str
    state: State
    why: str
    """How it ended, or why its state is not better known; empty where it runs or is finished."""
    host: str
    """Where it is trained, or was last; empty where nobody has said."""
    phase: Phase | Literal["preparing", "none"]
    """What rank 0 does while it runs; `preparing` before its first sign of life."""
    ranks: tuple[RankNow, ...]
    step: int
    """Steps that are done."""
    total: int
    epoch: float
    train_loss: float | None
    """Of the last step."""
    validation_loss: float | None
    """Of the last validation."""
    gap: float | None
    """The last validation loss less the mean of the twenty steps before it; None where answers are rewarded."""
    reward: float | None
    """Of the last twenty steps' answers on average; None where none are rewarded."""
    held_out_reward: float | None
    """Of the likeliest answers to validation rows, the last time."""
    held_out_interval: tuple[float, float] | None
    """Its 95 % interval."""
    tokens_per_second: float | None
    """Over the last twenty steps."""
    memory_bytes: int | None
    """Of rank 0's process, or its GPU's peak."""
    device_utilization: float | None
    seconds_left: float | None
    """Of training, where something may still come by itself: by the last twenty steps, and as planned before there is one."""
    checkpoint: int
    """The newest one's step; 0: none."""
    best_step: int
    """Of the best validation; 0: none."""
    best_value: float | None
    """Its loss, or the metric that `checkpoints.best_by` names."""
    restarts: int
    """How often its supervisor has begun it again."""
    findings: tuple[Finding, ...]
    """Of the plan and of the run itself, the newest of each."""
    diagnosed: bool
    """Whether what its curves show now is among them; else they are those that were told while it was trained."""
    began: float | None
    moved: float | None
    """When it last gave a sign of life."""

    @property
    def alarms(self) -> tuple[str, ...]:
        """Codes of the findings that are more than a note, each once."""
        return tuple(dict.fromkeys(each.code for each in self.findings if each.severity != "note"))

    @property
    def moves(self) -> bool:
        """Whether something may still come by itself."""
        return self.state in MOVING

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "findings": [each.to_json() for each in self.findings]}


class _Best(Part):
    """best.json."""

    step: int = 0
    value: float | None = None

    @classmethod
    def of(cls, run: RunFolder) -> "_Best":
        try:
            return cls.model_validate_json(run.pointer("best").read_bytes())
        except (OSError, ValidationError):
            return cls()


def status(run: RunFolder, told: Sequence[Mapping[str, Any]] | Literal["unread"] = "unread") -> Status:
    """Where the run stands now; `told` are its events, where somebody has read them.

    Nothing is touched or locked; a file that is torn, damaged or not there yet tells nothing.
    """
    events = [event for event in (jsonl.salvage(run.events).records if told == "unread" else told) if isinstance(event.get("time"), float)]
    stands, lines = standing(run, events), recent(run.metrics)
    planned, best = Planned.of(run), _Best.of(run)
    rewards = held_out(events)
    newest = max(lines.all, key=lambda line: line.step, default=None)
    checkpoint = max(run.saved_steps, default=0)
    step = lines.steps[-1].step if lines.steps else checkpoint
    times = [*(event["time"] for event in events), *(beat.time for beat in stands.beats)]
    ranks = tuple(
        RankNow(rank=beat.rank, host=beat.host, phase=beat.phase, step=beat.step, time=beat.time, ended=beat.last_words is not None)
        for beat in stands.beats
    )
    runs = stands.state in ("running", "silent")
    return Status(
        name=run.name,
        folder=str(run.path),
        state=stands.state,
        why=stands.why,
        host=stands.host,
        phase=(ranks[0].phase if ranks else "preparing") if runs else "none",
        ranks=ranks,
        step=step,
        total=0 if planned == "unknown" else planned.steps.total,
        epoch=newest.epoch if newest else 0.0,
        train_loss=lines.steps[-1].loss if lines.steps else None,
        validation_loss=lines.validation.loss if lines.validation else None,
        gap=lines.gap,
        reward=lines.reward,
        held_out_reward=rewards[-1].value if rewards else None,
        held_out_interval=(rewards[-1].low, rewards[-1].high) if rewards else None,
        tokens_per_second=lines.tokens_per_second,
        memory_bytes=newest.memory_bytes if newest else None,
        device_utilization=newest.device_utilization if newest else None,
        seconds_left=_seconds_left(planned, step, lines, events) if stands.state in MOVING else None,
        checkpoint=checkpoint,
        best_step=best.step,
        best_value=best.value,
        restarts=sum(event.get("event") == "restarted" for event in events),
        findings=_findings(planned, events),
        diagnosed=False,
        began=min(times, default=None),
        moved=max(times, default=None),
    )


def _seconds_left(planned: Planned | Literal["unknown"], step: int, lines: Recent, events: Sequence[Mapping[str, Any]]) -> float | None:
    """Steps to come at the pace of the last ones, validations and saves to come as long as the last one of each."""
    if planned == "unknown":
        return None
    steps, pace = planned.steps, lines.seconds_per_step
    if pace is None:
        return planned.time.mid
    saves = [event["seconds"] for event in events if event.get("event") == "saved" and isinstance(event.get("seconds"), float)]
    validations = sum(at > step for at in steps.evaluations) * (lines.validation.seconds if lines.validation else pace)
    return (steps.total - step) * pace + validations + sum(at > step for at in steps.saves) * (saves[-1] if saves else 0.0)


def _findings(planned: Planned | Literal["unknown"], events: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """Each once, by code and message, in the order in which they came up."""
    found = {} if planned == "unknown" else {(each.code, each.message): each for each in planned.findings}
    for event in events:
        if event.get("event") == "finding" and (told := _finding(event)):
            found[told.code, told.message] = told
    return tuple(found.values())


def _finding(event: Mapping[str, Any]) -> Finding | None:
    try:
        return FINDING.validate_python(event)
    except ValidationError:
        return None

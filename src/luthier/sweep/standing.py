"""What a trial's run has shown at its validations: the value that chooses its best checkpoint, and the rows behind it."""

from collections.abc import Mapping
from dataclasses import dataclass

from luthier.core import jsonl
from luthier.data.store import Prepared
from luthier.evaluate import metrics, report
from luthier.evaluate.loss import loss_of
from luthier.evaluate.metrics import Measurement
from luthier.evaluate.report import Report, Scores
from luthier.plan.steps import Steps
from luthier.runs.store import RunFolder, prepared_root
from luthier.runs.summary import DataSummary
from luthier.watch import rows

LOSS = "validation_loss"
"""The metric's name where `checkpoints.best_by` is `loss`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A validation of a run."""

    step: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a run is, and its validations so far."""

    run: RunFolder
    steps: Steps
    by: str
    """`loss` or `TASK.metric`."""
    keeps_best: bool
    """Whether its best checkpoint becomes the adapter, and not the last."""
    values: Mapping[int, float]
    """By step."""

    @property
    def higher_is_better(self) -> bool:
        """As a task's metric is."""
        return self.by != "loss"

    @property
    def metric(self) -> str:
        """Its name in tables."""
        return LOSS if self.by == "loss" else self.by

    @property
    def share(self) -> float:
        """Of its steps that it has shown: 1 at the end, however early that came."""
        return 1.0 if self.run.finished else max(self.values, default=0) / self.steps.total

    def reached(self, step: int) -> bool:
        """Whether it has shown this step and can go on from there; after the last there is an adapter."""
        on_the_way = step < self.steps.total and step in self.values and max(self.run.saved_steps, default=0) >= step
        return self.run.finished or on_the_way

    @property
    def latest(self) -> Shown | None:
        """What it would leave as adapter now."""
        return self.upto(self.steps.total)

    def upto(self, last: int) -> Shown | None:
        """Of its steps up to this one, what it would leave as adapter: the best, or the last; None before the first validation."""
        found = [Shown(step=step, value=value) for step, value in sorted(self.values.items()) if step <= last]
        if not found or not self.keeps_best:
            return found[-1] if found else None
        return min(found, key=lambda each: -each.value if self.higher_is_better else each.value)  # of equal ones the first, as in training

    def measured(self, shown: Shown) -> Measurement:
        """That validation row by row."""
        if self.by != "loss":
            return metrics.measurements(report.read(self.run.answers(shown.step)))[self.by]
        kept, summary = rows.kept(self.run, {shown.step})[shown.step], DataSummary.read(self.run.data)
        loss = loss_of(Prepared(prepared_root() / summary.hash), kept.losses, kept.tokens)
        scores = Scores(subject=self.run.name, data_hash=summary.hash, tasks={}, loss=loss)
        return metrics.measurements(Report(scores=scores))[LOSS]


def standing(run: RunFolder, steps: Steps, by: str, *, keeps_best: bool) -> Standing:
    """How a run stands by its folder."""
    there = set(run.validated_steps)
    if by == "loss":
        values = {step: kept.mean for step, kept in rows.kept(run, there).items()}
    else:
        scored = (event for event in jsonl.salvage(run.events).records if event.get("event") == "scored" and event.get("step") in there)
        values = {event["step"]: event["scores"][by] for event in scored}
    return Standing(run=run, steps=steps, by=by, keeps_best=keeps_best, values=values)

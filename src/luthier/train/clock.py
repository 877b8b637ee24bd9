"""What a run's steps, validations and saves take, held against the plan while it runs, and kept for later plans."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from luthier.core.progress import Progress
from luthier.core.words import duration
from luthier.plan.speed import Time
from luthier.runs import rates
from luthier.runs.rates import Circumstances
from luthier.runs.store import RunFolder
from luthier.train.forecast import ENOUGH, Schedule, Timing, forecast, run_rate


@dataclass(slots=True, kw_only=True)
class Clock:
    """Collects timings; after ten steps of this process it tells when the run will end, beside what was planned for the same steps."""

    schedule: Schedule
    planned: Time
    here: Circumstances
    folder: RunFolder
    progress: Progress
    timings: list[Timing] = field(default_factory=list)

    def note(self, kind: Literal["step", "validation", "save"], step: int, seconds: float) -> None:
        """One thing that was done."""
        self.timings.append(Timing(kind=kind, step=step, seconds=seconds))
        if kind == "step" and sum(timing.kind == "step" for timing in self.timings) == ENOUGH:
            self._tell(step)

    def keep_rate(self) -> None:
        """Let later plans on this machine know what this run reached, if it was long enough to tell."""
        tokens = sum(map(int, self.schedule.tokens)) / len(self.schedule.tokens)
        measured = run_rate(self.folder.name, self.here, self.planned.operations_per_step / tokens, self.schedule, self.timings)
        if measured:
            rates.keep_or_say(measured, self.progress.say)

    def _tell(self, step: int) -> None:
        found = forecast(self.schedule, self.timings)
        planned = found.planned
        self.folder.event(
            "forecast", step=step, after=found.after, total=asdict(found.total), left=asdict(found.left), planned=asdict(planned)
        )
        what = f"in all from step {found.after + 1} on" if found.after else "in all"
        self.progress.say(
            f"after {ENOUGH} steps: {duration(found.total.mid)} {what}, {duration(found.left.mid)} left; "
            f"planned for the same were {duration(planned.mid)} ({duration(planned.low)} … {duration(planned.high)})"
        )

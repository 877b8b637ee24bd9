"""What a run's steps, validations and saves take, held against the plan while it runs, and kept for later plans."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from luthier.core.progress import Progress
from luthier.plan.speed import Time
from luthier.runs import rates
from luthier.runs.rates import Circumstances
from luthier.runs.store import RunFolder
from luthier.train.forecast import ENOUGH, Schedule, Timing, forecast, run_rate


@dataclass(slots=True, kw_only=True)
class Clock:
    """Collects timings; after ten steps it tells when the run will end, beside what was planned."""

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
        if not measured:
            return
        try:
            rates.keep(measured)
        except OSError as error:  # it would be a pity, and no reason to lose the adapter
            self.progress.say(f"what this run reached is not kept for later plans: {error}")

    def _tell(self, step: int) -> None:
        found, planned = forecast(self.schedule, self.timings), self.planned.total
        self.folder.event("forecast", step=step, total=asdict(found.total), left=asdict(found.left), planned=asdict(planned))
        self.progress.say(
            f"after {ENOUGH} steps: {found.total.mid:.0f} s in all, {found.left.mid:.0f} s left; "
            f"planned were {planned.mid:.0f} s ({planned.low:.0f} … {planned.high:.0f})"
        )

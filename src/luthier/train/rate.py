"""Operations a second that a run will reach here: what earlier runs did, else what a probe shows, else what such a device usually does.

Imports torch only where a probe is made: a plan on a machine that is known takes a second.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from luthier.core.hardware import Hardware
from luthier.core.progress import Progress
from luthier.data.order import rows_of_step
from luthier.data.store import Rows
from luthier.data.survey import PreparedWorkload
from luthier.plan.hardware import Device
from luthier.plan.layout import Task
from luthier.plan.rate import assumed_rate, circumstances, measured_rate
from luthier.plan.setup import Setup
from luthier.plan.speed import Rate
from luthier.runs import rates
from luthier.runs.rates import Circumstances, threads_here
from luthier.runs.workload import Survey


@dataclass(frozen=True, slots=True, kw_only=True)
class RateHere:
    """Tells the rate of a task's setups. With `probe` some seconds are spent on finding out, where nothing is known."""

    task: Task
    config: Mapping[str, Any]
    """The base's config.json."""
    host: Hardware
    progress: Progress
    probe: bool

    def __call__(self, device: Device, setup: Setup, survey: Survey) -> Rate:
        """What a device reaches on these micro batches."""
        task, threads = self.task, threads_here(self.host)
        here = circumstances(device, threads, task.shape, setup, survey)
        if device.local:
            alone = device.kind == "cpu" and setup.layout.devices == 1  # as the probe is
            if self.probe and alone and setup.quantization == "none" and measured_rate(here) is None:
                self._measure(setup, survey, here)
            if known := measured_rate(here):
                return known
        return assumed_rate(device, threads, task.shape, setup)

    def _measure(self, setup: Setup, survey: Survey, here: Circumstances) -> None:
        """Keep what a probe finds, where one can be made."""
        from luthier.train.probe import CannotProbe, Trial, probe, random_rows

        self.progress.say("measuring for some seconds what this machine reaches; the next plan will know")
        task = self.task
        rows: Rows
        if isinstance(task.workload, PreparedWorkload):
            rows, number = task.workload.train, task.rows_per_step
        else:
            rows = random_rows(survey.steps[0][0], task.shape.vocabulary)
            number = len(rows)
        taken = rows_of_step(1, number, task.recipe.seed, rows)
        try:
            found = probe(Trial(config=self.config, setup=setup, rows=rows, taken=taken, circumstances=here))
            rates.keep_or_say(found, self.progress.say)
            if found.circumstances != here:  # another engine: the model will be found to have it, and the next plan asks for this one
                rates.keep_or_say(replace(found, circumstances=here), self.progress.say)
        except CannotProbe as reason:
            self.progress.say(str(reason))

"""A run that is asked through its control file: it saves and goes on, or saves and ends, and is gone on with as if nothing had been."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from luthier.core import jsonl
from luthier.core.progress import Advance, Silent
from luthier.core.signals import Interrupted
from luthier.runs import control
from luthier.runs.control import Wish
from luthier.runs.status import status
from luthier.runs.store import RunFolder
from luthier.train.run import train
from tests.train.recorded import metrics
from tests.train.workshop import Workshop


@dataclass
class Asking(Silent):
    """Somebody who looks on, and asks once a step is done."""

    run: RunFolder
    wish: Wish
    after: int

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        def advance(done: int, text: str) -> None:
            if done == self.after:
                control.ask(self.run, self.wish)

        yield advance


def saved(run: RunFolder) -> list[int]:
    return [record["step"] for record in jsonl.records(run.events) if record["event"] == "saved"]


def test_to_save_is_obeyed_after_the_step_and_training_goes_on(workshop: Workshop) -> None:
    job = workshop.job()
    assert train(replace(job, progress=Asking(job.folder, "save", 3))).last_step == 12
    assert saved(job.folder) == [3, 5, 6, 10, 12]
    assert control.wished(job.folder) == "nothing"


def test_to_save_what_is_saved_already_is_obeyed_at_once(workshop: Workshop) -> None:
    job = workshop.job(checkpoints={"save_steps": 1, "eval_steps": 12})
    train(replace(job, progress=Asking(job.folder, "save", 12)))
    assert saved(job.folder) == list(range(1, 13))
    assert control.wished(job.folder) == "nothing"


def test_to_save_before_the_first_step_is_obeyed_after_it(workshop: Workshop) -> None:
    job = workshop.job()
    control.ask(job.folder, "save")
    train(job)
    assert saved(job.folder) == [1, 5, 6, 10, 12]


def test_to_stop_saves_and_ends_and_the_same_run_goes_on(workshop: Workshop) -> None:
    whole, job = workshop.job("whole"), workshop.job()
    train(whole)
    with pytest.raises(Interrupted) as ended:
        train(replace(job, progress=Asking(job.folder, "stop", 3)))
    assert ended.value.exit_code == 143
    assert saved(job.folder) == [3]
    assert (status(job.folder).state, control.wished(job.folder)) == ("stopped", "nothing")
    train(job)
    assert metrics(job.folder) == metrics(whole.folder)
    assert (job.folder.adapter / "adapter_model.safetensors").read_bytes() == (
        whole.folder.adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_to_stop_after_the_last_step_changes_nothing(workshop: Workshop) -> None:
    job = workshop.job()
    train(replace(job, progress=Asking(job.folder, "stop", 12)))
    assert job.folder.finished
    assert control.wished(job.folder) == "nothing"

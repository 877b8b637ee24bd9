"""A signal ends training with all that was learned saved; what is done again gives the same run, bit for bit (trap 34)."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from luthier.core import jsonl
from luthier.core.progress import Silent
from luthier.core.signals import SECONDS_OF_ONE, Interrupted, ending_at_once
from luthier.data.prepare import prepare
from luthier.data.store import RowWriter
from luthier.train import checkpoint, loop, rehearse, run
from luthier.train.checkpoint import State
from luthier.train.run import TrainingJob, train
from tests.train.recorded import metrics
from tests.train.workshop import Workshop

FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json")


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def signalled(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, place: object, name: str, at: int = 1, *, after: float = 0.0
) -> None:
    """Let the signal come at the `at`-th call of a function, so many seconds before it does what it does."""
    function: Callable[..., object] = getattr(place, name)
    calls = 0

    def called(*args: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            time.sleep(after)
            send(number)
        return function(*args, **named)

    monkeypatch.setattr(place, name, called)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingJob]:
    """A run that no signal met."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("whole")
        patch.setenv("LUTHIER_RUNS", str(folder / "runs"))
        job = Workshop(folder).job("run")
        train(job)
        yield job


def ended_by(job: TrainingJob, number: signal.Signals) -> str:
    """Train until the signal; the name of the newest checkpoint, which is whole, or `none`."""
    with pytest.raises(Interrupted) as ended, ending_at_once():
        train(job)
    assert (ended.value.signal, ended.value.exit_code) == (number, 128 + number)
    newest = max(job.folder.checkpoints.glob("step-*"), default=Path("none"))
    if newest.name != "none":
        checkpoint.verify(newest)
    return newest.name


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
PHASES = {
    "the model is loaded": (run, "load_model", 1, "none"),
    "the worst case is tried": (rehearse, "_train", 1, "none"),
    "rows are validated": (loop, "validation_loss", 1, "step-000006"),
    "a checkpoint is saved": (checkpoint, "save", 2, "step-000005"),  # the first is the rehearsal's
    "rows are validated for the last time": (loop, "validation_loss", 2, "step-000012"),
    "the adapter is saved": (run, "save_final", 1, "step-000012"),
}


GRID = [
    pytest.param(phase, number, id=f"{number.name} while {phase}", marks=() if place % 4 == turn else pytest.mark.slow)
    for place, phase in enumerate(PHASES)
    for turn, number in enumerate(SIGNALS)
]
"""Every phase by one signal, and the others where the slow tests run."""


@pytest.mark.parametrize(("phase", "number"), GRID)
def test_a_signal_in_any_phase_leaves_a_whole_checkpoint_and_the_same_run(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, whole: TrainingJob, phase: str, number: signal.Signals
) -> None:
    place, name, at, newest = PHASES[phase]
    job = workshop.job()
    with monkeypatch.context() as patch:
        signalled(patch, number, place, name, at)
        assert ended_by(job, number) == newest
    assert not job.folder.finished
    torch.manual_seed(99)
    assert train(job).last_step == 12
    assert metrics(job.folder) == metrics(whole.folder)
    for file in FILES:
        assert (job.folder.checkpoint(12) / file).read_bytes() == (whole.folder.checkpoint(12) / file).read_bytes()
    assert (job.folder.adapter / "adapter_model.safetensors").read_bytes() == (
        whole.folder.adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_no_micro_batch_is_begun_after_the_signal(workshop: Workshop) -> None:
    job = workshop.job()
    computed = 0

    def count(*_: object) -> None:
        nonlocal computed
        computed += 1
        if computed == 9:  # two micro batches a step: the first of the fifth
            send(signal.SIGTERM)

    ready, _ = run._set_up(job)
    ready.model.get_base_model().get_decoder().register_forward_hook(count)
    with pytest.raises(Interrupted):
        loop.fit(ready, State())
    assert computed == 9
    assert [record["step"] for record in metrics(job.folder)] == [1, 2, 3, 4]
    assert State.read(job.folder.checkpoint(4) / "state.json").step == 4
    interrupted = [record for record in jsonl.records(job.folder.events) if record["event"] == "interrupted"]
    assert [(record["step"], record["signal"]) for record in interrupted] == [(4, "SIGTERM")]


def test_a_signal_while_rows_are_prepared_leaves_nothing_that_is_taken_for_whole(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = workshop.recipe(num_rows=29)
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, RowWriter, "add", 9)
        with pytest.raises(Interrupted), ending_at_once():
            prepare(recipe, Silent())
    assert len(prepare(recipe, Silent()).rows("train")) == 23


def test_a_second_ctrl_c_ends_at_once_and_harms_nothing(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, whole: TrainingJob) -> None:
    job = workshop.job()
    child = os.fork()
    if not child:
        signalled(monkeypatch, signal.SIGINT, checkpoint, "check_finite", 3, after=1.1 * SECONDS_OF_ONE)  # in the save after the first
        signalled(monkeypatch, signal.SIGINT, loop, "validation_loss")
        torch.set_num_threads(1)
        try:
            train(job)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT
    assert [path.name for path in sorted(job.folder.checkpoints.glob("step-*")) if path.suffix != ".part"] == ["step-000005"]
    train(job)
    assert metrics(job.folder) == metrics(whole.folder)

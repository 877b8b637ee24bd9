"""A run that was killed, wherever and however often, is bit for bit the run that was not: real processes, real SIGKILL (trap 25)."""

import functools
import shutil
from pathlib import Path

import pytest

from luthier.core import jsonl
from luthier.runs.store import RunFolder
from tests.faults.harness import Start, Starter, outcome, write_recipe

LAST = 6

# In the order of a run of six steps that validates at 3 and 6 and saves at 2, 3 (the best), 4 and 6. A process counts calls anew, and
# the rehearsal before step 1 has two of the loss, one update and one save of two files.
KILLS = {
    "while the model is loaded": "model/load.py:load_model:1",
    "in the middle of an epoch, between gradient and update": "optim/adam.py:adam:3",
    "inside an accumulation": "train/objective.py:nll_sum:8",
    "while it validates": "train/validate.py:validation_loss:1",
    "in a save, between weights and optimizer": "safetensors/torch.py:save_file:4",
    "in a save, before an older checkpoint goes": "core/files.py:remove:1",
    "after an epoch's end": "train/ahead.py:take:2",
    "in the last step": "optim/adam.py:adam:3",
    "in the last validation, before its line": "train/record.py:of_validation:1",
    "in the last save": "safetensors/torch.py:save_file:4",
    "before the adapter": "train/final.py:save_final:1",
    "between the adapter's files": "data/tokenizer.py:save:1",
}


class Home:
    """A recipe, and folders of runs that share its prepared data."""

    def __init__(self, folder: Path, processes: Starter) -> None:
        self.folder, self.processes = folder, processes

    def start(self, runs: str, packing: str, **faults: str) -> tuple[int, RunFolder]:
        """`luthier train`: how it ended, and its run."""
        recipe = write_recipe(self.folder, packing=packing)
        ended = self.processes.run(Start(words=("train", str(recipe)), runs=str(self.folder / runs), **faults))  # type: ignore[arg-type]
        assert ended.killed or ended.code == 0, ended.said
        return ended.code, RunFolder(self.folder / runs / "run")

    @functools.cache  # noqa: B019  a home lives as long as the tests of this file
    def uninterrupted(self, packing: str) -> dict[str, bytes]:
        """What the run leaves that nobody kills."""
        return outcome(self.start(f"whole-{packing}", packing)[1], LAST)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, processes: Starter) -> Home:
    return Home(tmp_path_factory.mktemp("kill"), processes)


@pytest.mark.parametrize("packing", ["tree", pytest.param("bins", marks=pytest.mark.slow)])
def test_a_run_killed_in_every_phase_is_the_uninterrupted_one(home: Home, packing: str) -> None:
    for where in KILLS.values():
        code, run = home.start(packing, packing, kill_in=where)
        assert code == -9, where
        assert not run.finished
    code, run = home.start(packing, packing)
    assert code == 0
    resumed = [record["step"] for record in jsonl.records(run.events) if record["event"] == "resumed"]
    assert resumed == sorted(resumed)
    assert {2, 3, 4, LAST} <= set(resumed)
    assert "damaged" not in {record["event"] for record in jsonl.records(run.events)}
    assert outcome(run, LAST) == home.uninterrupted(packing)


@pytest.mark.parametrize(
    "change", ["os.rename /run/checkpoints/step-000006.part", "os.remove adapter.safetensors", "os.rename /run/adapter.part /run/adapter"]
)
def test_a_run_killed_between_two_file_operations_is_the_uninterrupted_one(home: Home, change: str) -> None:
    name = f"killed-{abs(hash(change))}"
    assert home.start(name, "tree", kill_before=change)[0] == -9
    code, run = home.start(name, "tree")
    assert code == 0
    assert outcome(run, LAST) == home.uninterrupted("tree")


@pytest.mark.slow
def test_a_run_killed_before_any_file_operation_of_its_last_save_and_its_end_is_the_uninterrupted_one(home: Home) -> None:
    home.start("copied", "tree", copy_from="os.mkdir /run/checkpoints/step-000006.part")
    left = sorted(home.folder.glob("copied-*"))
    assert len(left) > 30
    for runs in left:
        code, run = home.start(runs.name, "tree")
        assert code == 0
        assert outcome(run, LAST) == home.uninterrupted("tree"), runs.name
        assert not [path for path in run.path.rglob("*") if path.suffix in (".part", ".old")], runs.name
        shutil.rmtree(runs)

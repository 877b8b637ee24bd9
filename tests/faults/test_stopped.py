"""What is read, by people and by programs, where a signal ends a run: that it is saved, after which step, and how it goes on."""

import json
import re
import signal
from pathlib import Path

import pytest

from luthier.runs.store import RunFolder
from tests.faults.harness import Ended, Start, Starter, write_recipe

IN_STEP_5 = "optim/adam.py:adam:6"  # the first is the rehearsal's
IN_LOADING = "model/load.py:load_model:1"
SAVED = "run run is saved after step 5 of 6 in checkpoint step-000005; the same command goes on from there"


class Home:
    """A recipe, and runs that share prepared data."""

    def __init__(self, folder: Path, processes: Starter) -> None:
        self.folder, self.processes = folder, processes
        self.recipe = write_recipe(folder)

    def train(self, runs: str, number: signal.Signals, where: str, *words: str) -> Ended:
        start = Start(words=("train", str(self.recipe), *words), runs=str(self.folder / runs), kill_in=where, signal=number)
        return self.processes.run(start)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, processes: Starter) -> Home:
    return Home(tmp_path_factory.mktemp("stopped"), processes)


@pytest.mark.parametrize(
    ("number", "by"),
    [
        (signal.SIGINT, "Ctrl-C (SIGINT)"),
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGUSR1, "SIGUSR1"),
        (signal.SIGHUP, "a closed terminal (SIGHUP)"),
    ],
)
def test_a_stopped_run_says_where_it_is_saved_and_is_no_error(home: Home, number: signal.Signals, by: str) -> None:
    ended = home.train(number.name, number, IN_STEP_5)
    assert ended.code == 128 + number
    assert ended.said.splitlines()[-1] == f"stopped by {by}: {SAVED}"
    assert "asked to stop: saving step 5 (Ctrl-C now ends at once, without it)" in ended.said
    assert "error" not in ended.said
    assert RunFolder(home.folder / number.name / "run").saved_steps[0] == 5


def test_a_program_is_told_the_same(home: Home) -> None:
    ended = home.train("json", signal.SIGTERM, IN_STEP_5, "--json")
    assert ended.code == 143
    told = json.loads(ended.said[re.search(r"^\{$", ended.said, re.MULTILINE).start() :])
    checkpoint = str(home.folder / "json" / "run" / "checkpoints" / "step-000005")
    assert told == {"interrupted": {"signal": "SIGTERM", "exit_code": 143, "run": "run", "step": 5, "steps": 6, "checkpoint": checkpoint}}


def test_a_run_that_is_stopped_before_its_first_save_says_so_and_one_that_goes_on_says_what_it_has(home: Home) -> None:
    ended = home.train("early", signal.SIGINT, IN_LOADING)
    assert ended.said.splitlines()[-1] == "stopped by Ctrl-C (SIGINT): no step of run run was saved yet; the same command begins it"
    assert home.train("early", signal.SIGINT, IN_STEP_5).code == 130
    ended = home.train("early", signal.SIGINT, IN_LOADING)
    assert ended.said.splitlines()[-1] == f"stopped by Ctrl-C (SIGINT): {SAVED}"


def test_a_finished_run_is_told_to_a_program_as_one_object(home: Home) -> None:
    ended = home.train("done", signal.SIGTERM, "", "--json")
    assert ended.code == 0
    told = json.loads(ended.said[re.search(r"^\{$", ended.said, re.MULTILINE).start() :])
    folder = home.folder / "done" / "run"
    assert told == {"run": "run", "folder": str(folder), "adapter": str(folder / "adapter"), "steps": 6}

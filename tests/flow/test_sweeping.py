"""`flow.sweep` on a tiny model: trials are ordinary runs, losers are stopped on the way of the full run, and what fails is told."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier import flow
from luthier.cli.main import app
from luthier.core import jsonl
from luthier.core.errors import RecipeError, UsageError
from luthier.core.progress import Silent
from luthier.flow.planning import facts_of
from luthier.plan.plan import make
from luthier.recipe.load import dump
from luthier.runs.status import status
from luthier.runs.store import RunFolder, alone, open_or_create
from luthier.sweep.budget import Budget
from luthier.sweep.options import Asked
from luthier.sweep.table import Table
from tests.train.recorded import metrics
from tests.train.workshop import Workshop

SECTIONS = {"checkpoints": {"eval_steps": 2, "save_steps": 8, "early_stopping_patience": "off"}, "training": {"max_steps": 8}}
OVER = ("training.learning_rate=1e-2,1e-5", "lora.r=2,4")


@dataclass
class Home:
    """A recipe, and runs and sweeps beside it."""

    root: Path
    recipe: Path

    def sweep(self, *over: str, overrides: tuple[str, ...] = (), halving: bool = False, within: tuple[str, ...] = ()) -> Table:
        asked = Asked(over=over, overrides=overrides, halving=halving, budget=Budget.read(within))
        return flow.sweep(flow.load(self.recipe, overrides), asked, Silent())

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.root / "runs" / name)

    def events(self, kind: str, sweep: str = "tiny") -> list[dict[str, object]]:
        return [event for event in jsonl.records(self.root / "sweeps" / sweep / "events.jsonl") if event["event"] == kind]


def home_in(folder: Path) -> Home:
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump(Workshop(folder).recipe(80, **SECTIONS)))
    return Home(folder, recipe)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    return home_in(tmp_path)


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Table]]:
    """Four trials by halving."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("halved")
        patch.setenv("LUTHIER_RUNS", str(folder / "runs"))
        home = home_in(folder)
        yield home, home.sweep(*OVER, halving=True)


def adapter(run: RunFolder) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def test_halving_trains_all_a_quarter_two_a_half_and_the_best_to_its_end(halved: tuple[Home, Table]) -> None:
    home, table = halved
    assert [(entry.how, entry.share) for entry in table.entries] == [
        ("finished", 1),
        ("stopped", 0.5),
        ("stopped", 0.25),
        ("stopped", 0.25),
    ]
    assert table.entries[0].trial.overrides[0] == "training.learning_rate=1e-2"
    assert [len(event["kept"]) for event in home.events("rung")] == [2, 1]  # type: ignore[arg-type]
    assert max(home.run(table.entries[2].trial.name).saved_steps) == 2


def test_the_winner_is_bitwise_the_run_that_train_makes_and_losers_are_its_beginning(
    halved: tuple[Home, Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, table = halved
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    for entry in (table.entries[0], table.entries[-1]):
        alone = flow.train(flow.load(home.recipe, (*entry.trial.overrides, f"name={entry.trial.name}"))).run
        own, lines = home.run(entry.trial.name), metrics(alone)
        if entry.how == "finished":
            assert adapter(own) == adapter(alone)
        assert metrics(own) == lines[: len(metrics(own))]


def test_a_loser_is_held_against_the_best_as_that_was_when_the_loser_was_stopped(halved: tuple[Home, Table]) -> None:
    home, table = halved
    assert table.metric is not None
    loser, best = table.entries[-1], table.entries[0]
    lines = {line["step"]: line["loss"] for line in metrics(home.run(best.trial.name)) if line["kind"] == "validation"}
    held = table.metric.against[loser.trial.name].difference
    assert loser.shown is not None and held.pairs == 16
    assert held.interval.value == pytest.approx(loser.shown.value - lines[2])


def test_the_same_call_again_trains_nothing_and_tells_the_same(halved: tuple[Home, Table], monkeypatch: pytest.MonkeyPatch) -> None:
    home, table = halved
    began = len(home.events("trained"))
    assert home.sweep(*OVER, halving=True).to_json() == table.to_json()
    assert len(home.events("trained")) == began
    assert json.loads((home.root / "sweeps" / "tiny" / "table.json").read_text()) == table.to_json()


def test_another_search_takes_the_runs_that_there_are_and_goes_on_with_those_that_were_stopped(
    halved: tuple[Home, Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(halved[0].root, tmp_path / "copy")
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "copy" / "runs"))
    home = Home(tmp_path / "copy", halved[0].recipe)
    found = home.sweep(*OVER)
    assert found.folder.endswith("tiny-2") and {entry.how for entry in found.entries} == {"finished"}
    assert len(home.events("trained", "tiny-2")) == 3
    resumed = {
        event["step"]
        for entry in found.entries
        for event in jsonl.records(home.run(entry.trial.name).events)
        if event["event"] == "resumed"
    }
    assert resumed == {2, 4}


def test_trials_that_fail_or_are_no_recipe_are_told_and_the_others_go_on(home: Home) -> None:
    absent = home.root / "nowhere"
    found = home.sweep("lora.r=0,4,8", f"lora.init_from='',{absent}", overrides=("training.max_steps=2",))
    told = {entry.trial.overrides: (entry.how, entry.why) for entry in found.entries}
    assert sorted(how for how, _ in told.values()) == ["failed", "failed", "finished", "finished", "refused", "refused"]
    how, why = told["lora.r=4", f"lora.init_from={absent}"]
    assert how == "failed" and "no adapter in" in why
    assert "lora.r" in told["lora.r=0", "lora.init_from=''"][1]
    assert {event["event"] for event in jsonl.records(Path(found.folder) / "events.jsonl")} >= {"failed", "refused", "trained", "ended"}


def test_a_trial_that_another_process_trains_is_left_to_it_and_taken_up_later(home: Home) -> None:
    short = ("training.max_steps=2",)
    held = flow.load(home.recipe, (*short, "lora.r=2", "name=tiny.r-2"))
    with alone(open_or_create("tiny.r-2", held.text, held.source)):
        found = home.sweep("lora.r=2,4", overrides=short)
    assert [entry.how for entry in found.entries] == ["finished", "left"] and "is being trained by process" in found.entries[1].why
    assert [entry.how for entry in home.sweep("lora.r=2,4", overrides=short).entries] == ["finished", "finished"]


def test_where_no_trial_can_be_trained_the_first_error_is_raised(home: Home) -> None:
    with pytest.raises(RecipeError, match=r"lora\.ranck"):
        home.sweep("lora.ranck=1,2")


def test_a_trial_that_does_not_fit_what_is_left_is_not_begun_and_a_larger_budget_begins_it(home: Home) -> None:
    priced = ("training.max_steps=2", "launch.price_per_hour=1")
    found = home.sweep("lora.r=2,4", overrides=priced, within=("0.0000001 dollars",))
    assert [entry.how for entry in found.entries] == ["left", "left"] and found.best is None
    assert found.entries[0].why.startswith("needs ")
    assert not home.run("tiny.r-2").path.exists()
    more = home.sweep("lora.r=2,4", overrides=priced, within=("10 dollars",))
    assert more.folder == found.folder and [entry.how for entry in more.entries] == ["finished", "finished"]
    assert 0 < more.spent.dollars < 1 and more.spent.dollars == pytest.approx(more.spent.seconds / 3600)


def test_a_trial_is_saved_and_stopped_as_the_time_is_over(home: Home) -> None:
    """The plan knows a tiny model's products, and not what it takes to ask for them: it is slower than planned by far."""
    long = ("training.max_steps=3000", "checkpoints.eval_steps=1500", "checkpoints.save_steps=3000")
    loaded = flow.load(home.recipe, long)
    seconds = 1.5 * make(facts_of(loaded.recipe, flow.prepare(loaded.recipe), Silent(), probe=False)).time.total.mid
    found = home.sweep("lora.r=2,4", overrides=long, within=(f"{seconds:.2f} s",))
    first, second = sorted(found.entries, key=lambda entry: entry.trial.name)
    assert (first.how, first.why.startswith("stopped as"), second.how, second.why.startswith("needs")) == ("left", True, "left", True)
    run = home.run("tiny.r-2")
    assert status(run).state == "stopped" and max(run.saved_steps, default=0) == status(run).step < 3000
    assert not run.control.exists() and not run.until.exists()


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (("data.split.validation=0", "data.split.train=1"), "judged on validation rows, and there are none"),
        (("launch.price_per_hour=0",), "dollars bound nothing"),
    ],
)
def test_what_cannot_be_judged_or_bounded_is_refused(home: Home, overrides: tuple[str, ...], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        home.sweep("lora.r=2,4", overrides=overrides, within=("5 dollars",))


def test_a_task_that_chooses_the_best_judges_the_trials_by_the_same_rows(home: Home) -> None:
    asked = "evaluation.tasks=[{name: answers, scorer: exact, max_new_tokens: 3}]"
    found = home.sweep("lora.r=2,4", overrides=("training.max_steps=2", "checkpoints.best_by=answers.exact", asked))
    assert found.metric is not None and found.metric.name == "answers.exact"
    (held,) = found.metric.against.values()
    assert held.difference.pairs == 16
    assert (home.run("tiny.r-2").answers(2) / "predictions.jsonl").exists()


def test_the_command_prints_the_trials_and_what_to_do_next(home: Home) -> None:
    words = ["sweep", str(home.recipe), "training.max_steps=2", "--over", "lora.r=2,4"]
    printed = CliRunner().invoke(app, words)
    assert printed.exit_code == 0, printed.output
    assert "lora.r=2" in printed.output and "luthier decide tiny.r-" in printed.output
    again = CliRunner().invoke(app, [*words, "--json"])
    assert [trial["state"] for trial in json.loads(again.stdout)["trials"]] == ["finished", "finished"]


@pytest.mark.slow
def test_trials_in_two_ranks_leave_off_and_go_on_as_in_one(home: Home) -> None:
    ranks = ("parallel.data=2", "training.max_steps=4", "checkpoints.eval_steps=2", "lora.dropout=0")
    found = home.sweep("lora.r=2,4", overrides=ranks, halving=True)
    assert [(entry.how, entry.share) for entry in found.entries] == [("finished", 1), ("stopped", 0.5)]
    best = home.run(found.entries[0].trial.name)
    assert [event["step"] for event in jsonl.records(best.events) if event["event"] in ("paused", "resumed")] == [2, 2]

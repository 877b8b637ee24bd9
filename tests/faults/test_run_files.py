"""The small files of a run folder, damaged: named as such, mended where what they said is known, and never taken for another run's."""

import json
import shutil
from pathlib import Path

import pytest

from luthier.core import jsonl
from luthier.core.errors import RunError
from luthier.recipe.load import training_text
from luthier.runs import store
from luthier.runs.store import RunFolder
from tests.faults.harness import Ended, Start, Starter, outcome, write_recipe

LAST = 6


class Home:
    """A recipe, and runs of it that share prepared data."""

    def __init__(self, folder: Path, processes: Starter) -> None:
        self.folder, self.processes = folder, processes
        self.recipe = write_recipe(folder)

    def luthier(self, runs: str, *words: str, kill_before: str = "") -> Ended:
        return self.processes.run(Start(words=words, runs=str(self.folder / runs), kill_before=kill_before))

    def train(self, runs: str, *overrides: str, kill_before: str = "") -> Ended:
        return self.luthier(runs, "train", str(self.recipe), *overrides, kill_before=kill_before)

    def run(self, runs: str) -> RunFolder:
        return RunFolder(self.folder / runs / "run")

    def broken_off(self, runs: str) -> RunFolder:
        """A run that was killed when its checkpoint of step 4 was saved."""
        shutil.rmtree(self.folder / runs, ignore_errors=True)
        shutil.copytree(self.folder / "killed", self.folder / runs)
        return self.run(runs)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, processes: Starter) -> Home:
    made = Home(tmp_path_factory.mktemp("files"), processes)
    assert made.train("whole").code == 0
    assert made.train("killed", kill_before="os.mkdir /run/checkpoints/step-000006.part").killed
    return made


def events(run: RunFolder, kind: str) -> list[dict[str, object]]:
    return [record for record in jsonl.records(run.events) if record["event"] == kind]


def test_no_byte_of_what_a_runs_recipe_says_of_training_can_change_unseen(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = home.broken_off("bytes")
    monkeypatch.setenv("LUTHIER_RUNS", str(home.folder / "bytes"))
    whole = run.recipe.read_bytes()
    other = whole.decode().replace("r: 4", "r: 5")
    assert store.own_recipe(run).lora != "none"
    began = run.began_with
    for place in range(len(whole)):
        for damaged in (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], whole[:place] + whole[place + 1 :], whole[:place]):
            run.recipe.write_bytes(damaged)
            if run.identity == began:  # what says where it is trained may change
                assert training_text(damaged.decode()) == training_text(whole.decode())
                continue
            if place % 16 == 0:
                assert store.open_or_create("run", whole.decode(), home.recipe) == run
                with pytest.raises(RunError, match=r"recipe\.yaml of run run is damaged"):
                    store.open_or_create("run", other, home.recipe)
                with pytest.raises(RunError, match=r"recipe\.yaml of run run is damaged"):
                    store.own_recipe(run)


@pytest.mark.parametrize("damage", ["a value changed", "not even YAML", "gone"])
def test_a_run_whose_recipe_is_damaged_is_told_and_goes_on_with_the_recipe_that_it_began_with(home: Home, damage: str) -> None:
    run = home.broken_off("recipe")
    text = run.recipe.read_bytes()
    run.recipe.unlink()
    if damage != "gone":
        run.recipe.write_bytes(text.replace(b"dropout: 0.1", b"dropout: 0.2") if damage == "a value changed" else b"\xff{[")
    ended = home.train("recipe")
    assert ended.code == 0, ended.said
    assert "recipe.yaml was damaged: this is the recipe that the run began with, and it is written anew" in ended.said
    assert "resumed after step 4" in ended.said
    assert [event["file"] for event in events(run, "damaged")] == ["recipe.yaml"]
    assert run.recipe.read_bytes() == text
    assert outcome(run, LAST) == outcome(home.run("whole"), LAST)


@pytest.mark.parametrize("words", [("train",), ("decide", "run"), ("evaluate", "run")])
def test_a_damaged_recipe_is_named_with_what_to_do_where_it_is_not_known_what_it_said(home: Home, words: tuple[str, ...]) -> None:
    run = home.broken_off("unknown")
    run.recipe.write_bytes(run.recipe.read_bytes()[:40])
    ended = home.luthier("unknown", *(("train", str(home.recipe), "lora.r=8") if words == ("train",) else words))
    assert ended.code == 1, ended.said
    assert "recipe.yaml of run run is damaged" in ended.said
    assert "recipe.original is the file as it was, environment.json has the command" in ended.said
    assert "Traceback" not in ended.said
    assert not (home.folder / "unknown" / "run-2").exists()


def test_a_run_of_a_version_that_did_not_note_its_recipe_is_damaged_where_it_cannot_be_read(home: Home) -> None:
    run = home.broken_off("older")
    lines = [record for record in jsonl.records(run.events) if record["event"] != "begun"]
    run.events.write_text("".join(json.dumps(record) + "\n" for record in lines))
    run.recipe.write_bytes(run.recipe.read_bytes()[:40])
    ended = home.train("older")
    assert ended.code == 1
    assert "recipe.yaml of run run is damaged" in ended.said


@pytest.mark.parametrize("damage", ["a size changed", "not even JSON", "gone"])
def test_a_damaged_plan_is_told_and_made_again_with_the_sizes_that_the_run_began_with(home: Home, damage: str) -> None:
    run = home.broken_off("plan")
    plan = json.loads(run.plan.read_text())
    run.plan.unlink()
    if damage != "gone":
        sizes = {**plan["sizes"], "tokens": plan["sizes"]["tokens"] + 64}
        run.plan.write_text(json.dumps({**plan, "sizes": sizes}) if damage == "a size changed" else '{"sizes": {"rows":')
    ended = home.train("plan")
    assert ended.code == 0, ended.said
    assert f"plan.json was damaged: the run goes on with {plan['sizes']['tokens']} tokens at once, as events.jsonl has it" in ended.said
    assert json.loads(run.plan.read_text())["sizes"] == plan["sizes"]
    assert outcome(run, LAST) == outcome(home.run("whole"), LAST)


def test_sizes_that_nobody_knows_any_more_are_told_before_anything_is_loaded(home: Home) -> None:
    run = home.broken_off("sizes")
    run.plan.write_text('{"sizes": {"rows":')
    run.events.write_text(run.events.read_text().replace('"tokens": ', '"tokens": 1'))
    ended = home.train("sizes")
    assert ended.code == 1
    assert "plan.json is damaged: its sizes are needed to go on, and events.jsonl does not have them either" in ended.said
    assert "or remove it, and the run goes on with the sizes that fit now" in ended.said
    assert "engine:" not in ended.said
    run.plan.unlink()
    assert home.train("sizes").code == 0


def test_lines_of_metrics_that_are_damaged_or_gone_are_told_with_their_number(home: Home) -> None:
    run = home.broken_off("metrics")
    one, two, *rest = run.metrics.read_bytes().splitlines(keepends=True)
    run.metrics.write_bytes(one.replace(b'"step": 1', b'"step": ') + b"".join(rest))
    ended = home.train("metrics")
    assert ended.code == 0, ended.said
    assert "metrics.jsonl: 1 damaged line was dropped; steps 1, 2 are no longer recorded (the training itself is not touched)" in ended.said
    (damaged,) = events(run, "damaged")
    assert (damaged["file"], damaged["lines"], damaged["lost"]) == ("metrics.jsonl", 1, 2)
    assert b'"step": 2,' in two
    whole = outcome(home.run("whole"), LAST)
    assert {name: content for name, content in outcome(run, LAST).items() if content != whole[name]}.keys() == {"metrics.jsonl"}


def test_a_finished_run_whose_recipe_is_damaged_is_mended_by_the_same_command_too(home: Home) -> None:
    shutil.copytree(home.folder / "whole", home.folder / "finished")
    run = home.run("finished")
    text = run.recipe.read_bytes()
    run.recipe.write_bytes(text.replace(b"dropout: 0.1", b"dropout: 0.2"))
    ended = home.train("finished")
    assert ended.code == 0
    assert "it is written anew" in ended.said and "is finished" in ended.said
    assert run.recipe.read_bytes() == text

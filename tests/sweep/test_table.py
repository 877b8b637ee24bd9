"""The table of a sweep, on losses that were drawn: what is a difference, what is noise, and what a reader must not overlook."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

from luthier.core.progress import Silent
from luthier.data.prepare import prepare
from luthier.data.store import Prepared
from luthier.plan.steps import Steps
from luthier.runs.store import RunFolder
from luthier.sweep.budget import Spent
from luthier.sweep.space import Trial
from luthier.sweep.standing import Standing, standing
from luthier.sweep.table import Entry, How, Table, table
from luthier.watch import rows
from tests.train.workshop import Workshop

STEPS = Steps(rows=100, global_batch_size=1, per_epoch=100, total=100, warmup=0, saves=(50, 100), evaluations=(50, 100))


class Drawn:
    """Trials whose validations lost what a test says, on 48 rows."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.draw = folder, Random(5)
        self.prepared: Prepared = prepare(Workshop(folder).recipe(240), Silent())
        self.tokens = np.asarray(self.prepared.rows("validation").num_supervised, np.int64)
        self.hard = [self.draw.uniform(0.5, 3) for _ in self.tokens]

    def stands(self, name: str, **worse_by: float) -> Standing:
        """A run whose rows lost so much a token more than the others', at `half` and at `end`."""
        run = RunFolder(self.folder / "runs" / name)
        run.path.mkdir(parents=True)
        self.prepared.summary.write(run.data)
        for step, worse in zip((50, 100), worse_by.values(), strict=False):
            nats = [(hard + worse + self.draw.gauss(0, 0.1)) * tokens for hard, tokens in zip(self.hard, self.tokens, strict=True)]
            rows.keep(run, step, rows.Rows(losses=np.array(nats), tokens=self.tokens))
        return standing(run, STEPS, "loss", keeps_best=True)

    def entry(self, name: str, how: How = "finished", **worse_by: float) -> Entry:
        return Entry(trial=Trial(name=name, overrides=(f"lora.r={name}",)), how=how, standing=self.stands(name, **worse_by))


def made(*entries: Entry, edges: tuple[str, ...] = ()) -> Table:
    return table(entries, {entry.trial.name: edges for entry in entries}, Spent(seconds=9), "sweeps/deb")


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    return Drawn(tmp_path)


def test_a_difference_is_told_from_noise_row_by_row(drawn: Drawn) -> None:
    """Rows differ by 2.5 nats a token, trials by 0.2 and by 0.01, with 0.1 of noise on each row: only pairs can tell."""
    found = made(drawn.entry("16", half=0.5, end=0.2), drawn.entry("32", half=0.5, end=0.0), drawn.entry("64", half=0.5, end=0.01))
    assert found.metric is not None and found.best is not None and found.best.trial.name == "32"
    assert [entry.trial.name for entry in found.entries] == ["32", "64", "16"]
    assert {name: (held.real, held.difference.pairs) for name, held in found.metric.against.items()} == {
        "16": (True, 48),
        "64": (False, 48),
    }
    assert found.metric.told_against("16").endswith(", worse") and found.metric.told_against("64").endswith(", noise")
    assert found.notes == ("not told apart from the best by these rows: lora.r=64",)


def test_a_loser_is_compared_by_what_the_best_had_shown_by_then(drawn: Drawn) -> None:
    best, loser = drawn.entry("16", half=0.5, end=0.0), drawn.entry("32", "stopped", half=0.5)
    found = made(loser, best)
    assert found.metric is not None
    held = found.metric.against["32"]
    assert abs(held.difference.interval.value) < 0.1 and not held.real
    assert "stopped early though not told apart from the best by then: lora.r=32" in found.notes


def test_the_best_so_far_counts_and_not_the_last(drawn: Drawn) -> None:
    overfit = drawn.stands("16", half=0.0, end=0.9)
    assert overfit.latest is not None and overfit.latest.step == 50 and overfit.share == 1


def test_those_that_came_further_come_first_and_those_that_showed_nothing_last(drawn: Drawn) -> None:
    failed = Entry(trial=Trial(name="0", overrides=("lora.r=0",)), how="refused", why="greater than 0")
    found = made(failed, drawn.entry("16", "stopped", half=0.0), drawn.entry("32", half=0.9, end=0.5))
    assert [entry.trial.name for entry in found.entries] == ["32", "16", "0"]
    told = found.to_json()
    assert [trial["state"] for trial in told["trials"]] == ["finished", "stopped", "refused"]
    assert told["best"] == {"run": "32", "overrides": ["lora.r=32"]} and "value" not in told["trials"][2]


def test_an_edge_and_a_best_that_is_not_finished_are_noted(drawn: Drawn) -> None:
    notes = made(drawn.entry("16", "left", half=0.0), edges=("lora.r=16 is the smallest tried",)).notes
    assert notes[0] == "lora.r=16 is the smallest tried: a better one may lie beyond"
    assert notes[1].startswith("the best is trained to 50 % of its steps")


def test_where_nothing_was_shown_there_is_no_best() -> None:
    failed = Entry(trial=Trial(name="0", overrides=("lora.r=0",)), how="failed", why="…")
    found = made(failed)
    assert found.best is None and found.to_json()["best"] is None

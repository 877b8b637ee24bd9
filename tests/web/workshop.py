"""A folder of runs as training and evaluation leave it, made by the functions that write them; only the numbers are drawn."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from luthier import flow
from luthier.core import files
from luthier.evaluate.gate import Verdict
from luthier.evaluate.judgement import Judgement
from luthier.evaluate.report import Prediction, Report, Scores, TaskScores
from luthier.flow.planning import facts_of
from luthier.plan.plan import make
from luthier.runs.environment import write_environment
from luthier.runs.store import RunFolder, open_or_create
from luthier.score.intervals import Interval
from luthier.web.app import app
from tests.runs.recorded import line, recorded

TOKEN = "a-token-of-the-tests"
SCRIPT = "<script>alert('row')</script>"
QUESTIONS = (f"Is {SCRIPT} text?", "Which animal barks?", "Which animal purrs?", "Which animal moos?", "Which animal sings?")


@contextmanager
def runs_in(folder: Path) -> Iterator[Path]:
    """LUTHIER_RUNS for as long as it is open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_RUNS", str(folder / "runs"))
        yield folder / "runs"


def recipe_in(folder: Path) -> Path:
    """A recipe of forty rows about animals, one of which holds HTML."""
    rows = [{"prompt": QUESTIONS[number % 5], "completion": f"answer {number}"} for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = "name: animals\nmodel: {base: demo}\ndata: {sources: [{path: rows.jsonl}], split: {train: 0.5, validation: 0.25, test: 0.25}}\n"
    path = folder / "recipe.yaml"
    path.write_text(text + "training: {max_steps: 60}\nevaluation: {tasks: [{name: answers, scorer: exact}]}\n")
    return path


def trained(recipe: Path, *overrides: str, steps: int = 60) -> RunFolder:
    """A finished run of the recipe, evaluated and decided."""
    loaded = flow.load(recipe, overrides)
    prepared = flow.prepare(loaded.recipe)
    run = open_or_create(loaded.recipe.name, loaded.text, loaded.source)
    prepared.summary.write(run.data)
    files.write_json(run.plan, make(facts_of(loaded.recipe, prepared, flow.SILENT, probe=False)).to_json())
    write_environment(run, prepared.summary)
    run.event("started", steps=steps, device="cpu")
    losses = [line(step, 1 + 3 * math.exp(-step / 20)) for step in range(1, steps + 1)]
    validations = [line(step, 1.2 + 3 * math.exp(-step / 20), "validation") for step in range(20, steps + 1, 20)]
    recorded(run, sorted([*losses, *validations], key=lambda each: each["step"]))
    run.adapter.mkdir()
    run.event("finished", step=steps)
    evaluated(run, "base", wrong=4)
    evaluated(run, "tuned", wrong=1)
    judged = Judgement(metric="answers.exact", bound=">= 0.9", outcome="undecided", reason="answers.exact is 80 % on 5 rows")
    Verdict(decision="not_enough_data", judgements=(judged,), findings=()).write(run.verdict)
    return run


def evaluated(run: RunFolder, name: str, *, wrong: int) -> None:
    """An evaluation in which so many of five answers are wrong: the first ones."""
    rows = tuple(
        Prediction(
            task="answers",
            origin=f"rows.jsonl:{number + 1}",
            group="barks" if "bark" in question else "other",
            messages=({"role": "user", "content": question},),
            reference="yes",
            answer=f"{name} says {SCRIPT if number == 0 else 'no'}" if number < wrong else "yes",
            score=float(number >= wrong),
            tokens=3,
            stopped=True,
            seconds=0.1,
        )
        for number, question in enumerate(QUESTIONS)
    )
    share = 1 - wrong / 5
    groups = {"barks": Interval(value=1.0, low=0.2, high=1.0, n=1), "other": Interval(value=share, low=0.1, high=0.9, n=4)}
    scores = TaskScores(metric="exact", value=share, low=0.1, high=0.99, n=5, groups=groups, cut=0)
    Report(scores=Scores(subject=name, data_hash="", tasks={"answers": scores}), predictions={"answers": rows}).write(run.evaluation(name))


def browser(root: Path) -> TestClient:
    """A browser that has opened the printed link."""
    client = TestClient(app(root, TOKEN), base_url="http://127.0.0.1:8000", headers={"origin": "http://127.0.0.1:8000"})
    assert client.get("/", params={"token": TOKEN}).status_code == 200
    return client


def environment_of(root: Path) -> dict[str, str]:
    """Of a process that is to see these runs."""
    return {**os.environ, "LUTHIER_RUNS": str(root)}

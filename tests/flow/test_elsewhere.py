"""A server behind a URL is evaluated as a model is, and may be what a run is compared with."""

import json
import math
import re
from pathlib import Path

import pytest

from luthier import flow
from luthier.core.errors import ModelError, UsageError
from luthier.evaluate import report
from luthier.runs.store import RunFolder
from tests.serve.spoken_to import Json, Reply, stranger, whole
from tests.serve.workshop import TOKEN, place

ANIMALS = {"cat": "meows", "dog": "barks", "cow": "moos", "hen": "clucks"}
RECIPE = """\
name: animals
model: {base: demo, dtype: float32}
lora: {r: 4}
data:
  sources: [{path: rows.jsonl}]
  split: {train: 0.6, validation: 0.2, test: 0.2}
training: {max_steps: 1, global_batch_size: 4}
evaluation:
  tasks: [{name: sound, scorer: contains, max_new_tokens: 4}]
decision:
  deploy: {sound.contains: better than baseline, latency_p50: not worse than baseline by 900 %}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    rows = [{"prompt": f"What does {name} {number} do?", "completion": sound} for number in range(12) for name, sound in ANIMALS.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_RUNS", str(home / "runs"))
        return flow.train(flow.load(home / "recipe.yaml")).run


@pytest.fixture(autouse=True)
def _runs_in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(home / "runs"))
    monkeypatch.setenv("LUTHIER_TOKEN", TOKEN)


def animal(body: Json) -> Reply:
    """Knows cats and dogs."""
    name = body["messages"][-1]["content"].split()[2]
    return Reply(body=whole(f"it {ANIMALS[name]}" if name in ("cat", "dog") else "who knows"))


def test_luthiers_own_server_is_evaluated_by_its_url_and_its_token_is_kept_nowhere(home: Path) -> None:
    with place() as server:
        found = flow.evaluate(f"{server.url}/v1#tuned", recipe=flow.load(home / "recipe.yaml").recipe)
    scores = found.report.scores
    assert found.folder.parent == home / "runs" / "evaluations" and found.folder.name.endswith("v1-tuned")
    assert scores.tasks["sound"].n >= 8 and (scores.loss, scores.peak_memory_bytes) == (None, None)
    assert scores.latency and scores.latency.first_token.p50.value > 0
    assert scores.tokens_per_second and scores.tokens_per_second > 0
    assert all(TOKEN not in path.read_text() for path in found.folder.rglob("*.json*"))
    assert report.read(found.folder) == found.report


def test_what_a_server_does_not_tell_is_null_and_read_back_as_such(home: Path) -> None:
    def terse(body: Json) -> Reply:
        return Reply(body={**animal(body).body, "usage": None})

    with stranger(terse) as there:
        found = flow.evaluate(there.url, recipe=flow.load(home / "recipe.yaml").recipe)
    kept = report.read(found.folder).scores
    assert kept.tokens_per_second is None and kept.tasks["sound"].value == pytest.approx(0.5, abs=0.35)
    assert kept.latency and kept.latency.first_token.p50.n == 0 and kept.latency.answer.p50.n > 0
    assert math.isnan(kept.latency.rows[0].first_token_seconds)


def test_a_run_is_decided_about_against_a_server_that_is_asked_once(home: Path, run: RunFolder) -> None:
    with stranger(animal) as there:
        first = flow.decide("animals", baseline=there.url)
        heard = len(there.bodies)
        assert {each["Authorization"] for each in there.headers} == {f"Bearer {TOKEN}"}
        assert flow.decide("animals", baseline=there.url) == first and len(there.bodies) == heard
    pairs = {judged.metric: judged.difference.pairs for judged in first.judgements if judged.difference}
    assert pairs["sound.contains"] == report.read(run.evaluation("tuned")).scores.tasks["sound"].n
    assert pairs["latency_p50"] > 0  # taken in turn with it
    assert first.decision != "deploy"


def test_a_server_needs_a_recipe_and_has_the_model_that_is_named(home: Path) -> None:
    with pytest.raises(UsageError, match="knows no tasks"):
        flow.evaluate("http://127.0.0.1:9")
    with place() as server, pytest.raises(ModelError, match="3 models"):
        flow.evaluate(server.url, recipe=flow.load(home / "recipe.yaml").recipe)


def test_a_recipes_judge_scores_answers_and_says_which_are_better_once(home: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def judging(body: Json) -> Reply:
        """Whatever contains a dot is good; of two, the longer."""
        user = body["messages"][1]["content"]
        answers = re.findall(r"<answer.*?>\n(.*?)\n</answer", user, re.DOTALL)
        better = "A" if len(answers[0]) > len(answers[-1]) else "B"
        return Reply(body=whole(json.dumps({"score": 4} if len(answers) == 1 else {"better": better})))

    with stranger(judging) as judge, stranger(animal) as other:
        task = f"evaluation={{judge: '{judge.url}', rubric: 'Is it right?', tasks: [{{name: sound, scorer: judge, max_new_tokens: 4}}]}}"
        monkeypatch.setenv(f"LUTHIER_127_0_0_1_{judge.url.rpartition(':')[2]}_TOKEN", "the-judges-own")
        judged = flow.load(home / "recipe.yaml", ["name=judged", task, "decision={deploy: {sound.judged_better: '> 0.9'}}"])
        flow.train(judged)
        verdict = flow.decide("judged", baseline=other.url)
        heard = len(judge.bodies)
        assert flow.decide("judged", baseline=other.url) == verdict and len(judge.bodies) == heard
        assert {each["Authorization"] for each in judge.headers} == {"Bearer the-judges-own"}
        assert {each["Authorization"] for each in other.headers} == {f"Bearer {TOKEN}"}  # each server hears its own
    assert [bound.metric for bound in verdict.judgements] == ["sound.judged_better"]
    found = report.read(run.path.with_name("judged") / "evaluations" / "tuned")
    assert (found.scores.tasks["sound"].metric, found.scores.tasks["sound"].value) == ("judge", 0.75)


def test_a_server_that_a_recipe_names_is_given_no_token_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    named, typed = (flow.evaluating.Elsewhere(name="https://api.example.org:81/v1#m", typed=typed) for typed in (False, True))
    assert (named.token, typed.token) == ("", TOKEN)
    monkeypatch.setenv("LUTHIER_API_EXAMPLE_ORG_81_TOKEN", "its-own")
    assert (named.token, typed.token) == ("its-own", "its-own")

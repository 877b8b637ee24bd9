"""A judge in this process, a run or a model: it scores and compares the answers of a run, and both decide."""

import json
from pathlib import Path

import pytest

from luthier import flow
from luthier.core.progress import Silent
from luthier.evaluate import judge, report
from luthier.evaluate.gate import Verdict
from luthier.evaluate.report import Judged, Prediction, Report

RUBRIC = "Is it right?"
ANIMALS = {"cat": "meows", "dog": "barks", "cow": "moos", "hen": "clucks"}
PARTIAL = '{"reason": "so it is", "score": 4, "better": "A"}'
"""What the judge has learned to say of everything: 4 of 5, and the first is better."""
ANSWERS = """\
model: {base: demo, dtype: float32}
lora: {r: 8, dropout: 0}
data:
  sources: [{path: rows.jsonl}]
  split: {train: 0.4, validation: 0.1, test: 0.5}
training: {max_steps: 12, global_batch_size: 4, learning_rate: 3e-3}
checkpoints: {eval_steps: 12}
evaluation:
  judge: JUDGE
  rubric: Is it right?
  tasks: [{name: sound, scorer: judge, max_new_tokens: 4}]
decision:
  deploy: {sound.judge: '>= 50 %', sound.judged_better: '> 0.2'}
"""
ARBITER = """\
name: arbiter
model: {base: demo, dtype: float32}
lora: {r: 16, alpha: 32, dropout: 0}
data:
  sources: [{path: judged.jsonl}]
  split: {train: 1, validation: 0, test: 0}
training: {max_steps: 20, global_batch_size: 4, learning_rate: 3e-3, warmup_ratio: 0.1}
checkpoints: {eval_steps: 20}
"""


def asked(name: str, number: int, answer: str) -> Prediction:
    return Prediction(
        task="sound",
        origin=f"rows.jsonl:{number}",
        group="",
        messages=({"role": "user", "content": f"What does {name} {number} do?"},),
        reference=ANIMALS[name],
        answer=answer,
        score=0.0,
        tokens=1,
        stopped=True,
        seconds=0.1,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of animals, and a run that was trained to judge."""
    folder = tmp_path_factory.mktemp("home")
    rows = [{"prompt": f"What does {name} {number} do?", "completion": sound} for number in range(12) for name, sound in ANIMALS.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learned = []
    for number in range(20, 22):
        for name, sound in ANIMALS.items():
            right, wrong = asked(name, number, sound), asked(name, number, "who knows")
            prompts = [
                judge.score_prompt(right, RUBRIC),
                judge.compare_prompt(right, wrong, RUBRIC),
                judge.compare_prompt(wrong, right, RUBRIC),
            ]
            turns = [[turn.to_template() for turn in prompt.messages] for prompt in prompts]
            learned += [{"messages": [*each, {"role": "assistant", "content": PARTIAL}]} for each in turns]
    (folder / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in learned))
    (folder / "arbiter.yaml").write_text(ARBITER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_RUNS", str(folder / "runs"))
        flow.train(flow.load(folder / "arbiter.yaml"))
    return folder


@pytest.fixture(autouse=True)
def _runs_in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(home / "runs"))


def decided(home: Path, name: str, by: str) -> tuple[Verdict, Report, Judged]:
    """The verdict on a run of its own, its evaluation and the judge's preferences."""
    (home / f"{name}.yaml").write_text(f"name: {name}\n{ANSWERS.replace('JUDGE', by)}")
    flow.train(flow.load(home / f"{name}.yaml"))
    evaluated = flow.evaluate(name, progress=Silent()).report
    verdict = flow.decide(name)
    kept = home / "runs" / name / "evaluations"
    assert report.read(kept / "tuned") == evaluated  # which `decide` did not ask again
    return verdict, evaluated, Judged.model_validate_json((kept / "judged-base" / "preferences.json").read_bytes())


@pytest.mark.slow
def test_a_run_judges_another_and_its_love_for_the_first_answer_makes_ties(home: Path) -> None:
    verdict, evaluated, kept = decided(home, "animals", "arbiter")
    scored = evaluated.scores.tasks["sound"]
    assert (scored.metric, scored.value, scored.unread) == ("judge", 0.75, 0)
    rows = kept.tasks["sound"]
    apart = [row for row in rows if row.verdicts]  # the same answers are a tie that nobody is asked about
    assert apart and {row.verdicts for row in apart} == {("A", "A")} and {row.value for row in rows} == {0.5}
    outcomes = {judged.metric: judged.outcome for judged in verdict.judgements}
    assert verdict.decision == "deploy", verdict.reasons
    assert outcomes == {"sound.judge": "holds", "sound.judged_better": "holds"}
    assert flow.decide("animals") == verdict


@pytest.mark.slow
def test_a_model_that_cannot_judge_decides_nothing_in_secret(home: Path) -> None:
    """The demo's base says no such thing as a verdict: each counts as the worst score or as a tie, and the gate tells."""
    verdict, evaluated, kept = decided(home, "unjudged", "demo")
    scored = evaluated.scores.tasks["sound"]
    assert scored.value == 0 and scored.unread == scored.n
    asked_about = [row for row in kept.tasks["sound"] if row.verdicts]
    assert asked_about and {row.verdicts for row in asked_about} == {("unread", "unread")}
    assert verdict.decision == "iterate" and [finding.code for finding in verdict.findings].count("judgements_unread") == 2

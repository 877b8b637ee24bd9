"""The public API on a small real case: what each verb returns, and how runs, baselines and evaluations fit together."""

import json
from pathlib import Path

import pytest

from luthier import flow
from luthier.core import files
from luthier.core.errors import ModelError, RecipeError, UsageError
from luthier.recipe.load import LoadedRecipe
from luthier.runs.store import RunFolder

ANIMALS = {"cat": "meows", "dog": "barks", "cow": "moos", "hen": "clucks"}
RECIPE = """\
name: animals
model: {base: demo, dtype: float32}
lora: {r: 4, dropout: 0.1}
data:
  sources: [{path: rows.jsonl}]
  split: {train: 0.6, validation: 0.2, test: 0.2}
  group_by: place
training: {max_steps: 4, global_batch_size: 8, learning_rate: 2e-3}
checkpoints: {eval_steps: 2, save_steps: 2}
evaluation:
  tasks: [{name: sound, scorer: contains, max_new_tokens: 4}]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    rows = [
        {"prompt": f"What does {name} number {number} do?", "completion": sound, "place": "house" if len(sound) > 4 else "field"}
        for number in range(20)
        for name, sound in ANIMALS.items()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _runs_in_home(home: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_RUNS", str(home / "runs"))
        yield


def load(home: Path, *overrides: str) -> LoadedRecipe:
    return flow.load(home / "recipe.yaml", overrides)


@pytest.fixture(scope="module")
def run(home: Path) -> RunFolder:
    return flow.train(load(home)).run


def test_steps_follow_from_the_prepared_rows(home: Path) -> None:
    recipe = load(home).recipe
    prepared = flow.prepare(recipe)
    steps = flow.steps(recipe, prepared)
    assert steps.rows == len(prepared.rows("train"))
    assert (steps.total, steps.evaluations) == (4, (2, 4))


def test_a_run_that_is_finished_is_not_trained_again(home: Path, run: RunFolder) -> None:
    metrics = run.metrics.read_bytes()
    assert flow.train(load(home)).run == run
    assert run.metrics.read_bytes() == metrics


def test_another_recipe_of_the_same_name_gets_a_run_of_its_own(home: Path, run: RunFolder) -> None:
    assert flow.train(load(home, "training.max_steps=2", "seed=7")).run.name == "animals-2"


def test_a_run_is_evaluated_with_its_own_recipe_and_kept_in_its_folder(run: RunFolder) -> None:
    evaluated = flow.evaluate("animals")
    assert evaluated.folder == run.evaluation("tuned")
    assert set(evaluated.report.scores.tasks) == {"sound"}
    assert set(evaluated.report.scores.tasks["sound"].groups) == {"house", "field"}
    assert evaluated.report.scores.loss is not None


def test_a_file_of_rows_is_asked_whole_twins_and_long_rows_too(home: Path, run: RunFolder) -> None:
    more, fox = home / "more.jsonl", {"prompt": "What does a fox do?", "completion": "nobody knows", "place": "wood"}
    long = {**fox, "prompt": "And " + "still " * 200 + "the bear?", "completion": "growls"}
    more.write_text("".join(json.dumps(row) + "\n" for row in (fox, fox, long)))
    asked = load(home, "evaluation.tasks.0.split=validation", "evaluation.tasks.0.limit=1", "data.max_length=100").recipe
    evaluated = flow.evaluate("demo", flow.Options(data=more), asked)
    assert [row.reference for row in evaluated.report.predictions["sound"]] == ["nobody knows", "nobody knows", "growls"]
    assert evaluated.report.scores.loss is None  # no rows of the recipe are asked
    assert evaluated.folder.name == f"demo-data-more-{files.sha256(more)[:8]}"
    assert flow.evaluate("animals", flow.Options(data=more, limit=1)).report.scores.tasks["sound"].n == 1


def test_a_file_and_a_split_cannot_both_be_asked(home: Path) -> None:
    with pytest.raises(UsageError, match="--split"):
        flow.Options(data=home / "rows.jsonl", split="validation")
    with pytest.raises(UsageError, match=r"none\.jsonl: there is no such file"):
        flow.Options(data=home / "none.jsonl")


def test_a_run_answers_another_recipes_tasks_on_its_data(home: Path, run: RunFolder) -> None:
    (home / "sheep.jsonl").write_text("".join(f'{{"prompt": "Sheep {number}?", "completion": "bleats"}}\n' for number in range(20)))
    lines = ("name: sheep", "model: {base: absent/model, dtype: float32}", "data: {sources: [{path: sheep.jsonl}], deduplicate: none}")
    (home / "sheep.yaml").write_text("\n".join((*lines, "evaluation: {tasks: [{name: baa, scorer: exact, max_new_tokens: 4}]}")))
    sheep = flow.load(home / "sheep.yaml").recipe
    by_name, by_folder = (flow.evaluate(name, recipe=sheep) for name in ("animals", str(run.path)))
    assert by_name.folder == by_folder.folder == run.evaluation("tuned-on-sheep")
    assert {row.reference for row in by_name.report.predictions["baa"]} == {"bleats"}
    asked = flow.evaluate(str(run.adapter), recipe=load(home, "name=same").recipe).report.predictions["sound"]
    again = flow.evaluate("animals", recipe=load(home, "name=same").recipe).report.predictions["sound"]
    assert [row.answer for row in again] == [row.answer for row in asked]


def test_a_model_or_an_adapter_folder_without_a_recipe_is_told_to_bring_one(run: RunFolder) -> None:
    for name in (str(run.adapter), "demo"):
        with pytest.raises(UsageError, match="a model or an adapter folder needs --recipe"):
            flow.evaluate(name)


def test_an_adapter_is_refused_under_another_chat_template_than_it_was_trained_with(home: Path, run: RunFolder) -> None:
    own = flow.prepare(load(home).recipe).summary.template.sha256
    template = (run.adapter / "chat_template.jinja").read_text()
    (home / "same.jinja").write_text(template)
    flow.evaluate(str(run.adapter), flow.Options(limit=1), load(home, f"model.chat_template={home}/same.jinja").recipe)
    (home / "other.jinja").write_text("{# another #}" + template)
    other = load(home, f"model.chat_template={home}/other.jinja").recipe
    theirs = flow.prepare(other).summary.template.sha256
    for name in (str(run.adapter), "animals"):
        with pytest.raises(ModelError, match=f"chat template {own}, not {theirs}"):
            flow.evaluate(name, recipe=other)


def test_the_adapter_folder_and_the_run_give_the_same_answers(home: Path, run: RunFolder) -> None:
    by_run = flow.evaluate("animals").report.predictions["sound"]
    by_folder = flow.evaluate(str(run.adapter), recipe=load(home).recipe).report.predictions["sound"]
    assert [row.answer for row in by_run] == [row.answer for row in by_folder]


def test_the_base_itself_can_be_evaluated(home: Path) -> None:
    evaluated = flow.evaluate("demo", recipe=load(home).recipe)
    assert evaluated.folder == home / "runs" / "evaluations" / "demo"


def test_without_a_rule_every_task_must_beat_the_base(run: RunFolder) -> None:
    verdict = flow.decide("animals")
    assert any("sound.contains" in reason for reason in verdict.reasons)
    assert (run.evaluation("base") / "scores.json").exists()
    assert json.loads(run.verdict.read_text())["decision"] == verdict.decision


def test_another_run_is_a_baseline_on_the_same_rows(home: Path, run: RunFolder) -> None:
    other = flow.train(load(home, "name=other", "training.max_steps=1")).run
    flow.decide("animals", baseline=other.name)
    ours, theirs = (flow.kept_report(run.evaluation(name)).predictions["sound"] for name in ("tuned", "against-other"))
    assert [row.row for row in ours] == [row.row for row in theirs]


def test_a_scores_file_is_a_baseline(run: RunFolder) -> None:
    flow.decide("animals")
    same = flow.decide("animals", baseline=str(run.evaluation("tuned") / "scores.json"))
    assert same.decision == "not_enough_data"  # no better than itself, and no worse


def test_full_fine_tuning_leaves_a_whole_model_that_is_evaluated_as_one(home: Path) -> None:
    run = flow.train(load(home, "name=whole", "lora=none", "training.max_steps=1")).run
    assert (run.adapter / "config.json").exists()
    assert flow.evaluate("whole", flow.Options(limit=2)).report.scores.tasks["sound"].n == 2


def test_the_best_checkpoint_can_be_chosen_by_a_task(home: Path) -> None:
    run = flow.train(load(home, "name=by-task", "checkpoints.best_by=sound.contains")).run
    scored = [json.loads(line) for line in run.events.read_text().splitlines() if '"scored"' in line]
    assert [set(event["scores"]) for event in scored] == [{"sound.contains"}] * 2
    assert "value" in json.loads(run.pointer("best").read_text())


def test_best_by_a_metric_the_task_does_not_have_is_refused(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"sound\.contains"):
        load(home, "checkpoints.best_by=sound.exact")


def test_an_unfinished_run_is_not_evaluated(home: Path) -> None:
    loaded = load(home, "name=unfinished")
    folder = RunFolder(home / "runs" / "unfinished")
    folder.path.mkdir(parents=True)
    folder.recipe.write_text(loaded.text)
    with pytest.raises(UsageError, match="not finished"):
        flow.evaluate("unfinished")


def test_inspected_rows_show_the_answer_as_trained_on(home: Path) -> None:
    (row,) = flow.inspect(load(home).recipe, "train", [0])
    assert "".join(segment.text for segment in row.segments if segment.trained).removesuffix("<|im_end|>") in ANIMALS.values()


def test_written_splits_can_be_read_again(home: Path, tmp_path: Path) -> None:
    prepared = flow.prepare(load(home).recipe)
    flow.write_splits(prepared, tmp_path)
    again = load(home, f"data.sources.0.path={tmp_path}/train.jsonl", "data.group_by=''", "data.split={train: 1, validation: 0, test: 0}")
    assert len(flow.prepare(again.recipe).rows("train")) == len(prepared.rows("train"))


GUARDED = """decision.deploy={
  sound.contains: better than baseline, known.contains: not worse than base by 30 %, latency_p50: not worse than base by 400 %
}"""


@pytest.fixture(scope="module")
def guarded(home: Path) -> RunFolder:
    """A run whose rule has a target, a guard of its own rows, and a comparison of times."""
    questions = [{"prompt": f"Say {word}.", "completion": word} for word in ANIMALS] * 5
    (home / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    known = f"{{name: known, data: {home / 'known.jsonl'}, scorer: contains, max_new_tokens: 4}}"
    tasks = f"evaluation.tasks=[{{name: sound, scorer: contains, max_new_tokens: 4}}, {known}]"
    return flow.train(load(home, "name=guarded", GUARDED, tasks)).run


def test_the_base_is_asked_what_it_knew_and_timed_in_turn_with_the_tuned_model(guarded: RunFolder) -> None:
    verdict = flow.decide("guarded")
    by_metric = {judged.metric: judged for judged in verdict.judgements}
    known = by_metric["known.contains"]
    assert known.difference and known.difference.pairs == 20
    assert known.difference.interval.high > 0.5  # four questions, five times each, are four
    turns = json.loads((guarded.evaluation("in-turn-base") / "latency.json").read_text())
    assert [row["origin"] for row in turns["tuned"]["rows"]] == [row["origin"] for row in turns["other"]["rows"]]
    times = by_metric["latency_p50"].difference
    assert times and times.pairs == len(turns["tuned"]["rows"])


def test_a_look_at_the_same_is_counted_once_and_another_baseline_is_another_look(guarded: RunFolder) -> None:
    first, again = flow.decide("guarded"), flow.decide("guarded")
    assert (first.look, again.look) == (1, 1) and first.to_json() == again.to_json()
    other = flow.decide("guarded", baseline=str(guarded.evaluation("base") / "scores.json"))
    assert other.look == 2 and "looked_before" in {finding.code for finding in other.findings}
    assert flow.decide("guarded").look == 1
    assert len(guarded.looks.read_text().splitlines()) == 2


def test_other_rows_of_a_task_are_asked_anew(home: Path, guarded: RunFolder) -> None:
    before = flow.decide("guarded").look
    with (home / "known.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "Say cock.", "completion": "cock"}) + "\n")
    verdict = flow.decide("guarded")
    scores = flow.kept_report(guarded.evaluation("tuned")).scores
    assert scores.tasks["known"].n == 21 and verdict.look > before


def test_losses_are_kept_row_by_row(guarded: RunFolder) -> None:
    loss = flow.kept_report(guarded.evaluation("tuned")).scores.loss
    assert loss and len(loss.rows) == loss.n and sum(row.tokens for row in loss.rows) == loss.tokens
    assert sum(row.nats for row in loss.rows) / loss.tokens == pytest.approx(loss.value)

"""Tasks of lm-evaluation-harness: our model as its library asks it is its own HFLM, and what it finds is evaluated, compared and decided.

What needs the extra `harness` is skipped without it; `make test-slow` installs it.
"""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

from luthier import flow
from luthier.core.errors import DataError, ModelError, RecipeError, UsageError
from luthier.core.progress import Silent
from luthier.data.questions import asked_hash
from luthier.data.tokenizer import load_tokenizer
from luthier.evaluate import report
from luthier.evaluate.options import Options
from luthier.model.generate import LocalCompleter
from luthier.model.load import load_model
from luthier.recipe.load import LoadedRecipe
from luthier.recipe.proof import Task
from luthier.recipe.schema import Model
from luthier.score.scorers import metric_name
from tests.serve.spoken_to import Json, Reply, stranger, whole

if TYPE_CHECKING:
    from luthier.evaluate.harness import HarnessModel

ANIMALS = {"cat": "meows", "dog": "barks", "cow": "moos", "hen": "clucks"}
RECIPE = """\
name: animals
model: {base: demo, dtype: float32}
lora: {r: 8, dropout: 0}
data:
  sources: [{path: rows.jsonl}]
  split: {train: 0.8, validation: 0, test: 0.2}
training: {max_steps: 40, global_batch_size: 8, learning_rate: 5e-3}
checkpoints: {eval_steps: 40}
"""
KNOWN = """\
task: known
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["meows", "barks", "moos", "clucks"]
doc_to_target: "{{sound}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
SAID = """\
task: said
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{sound}}"
generation_kwargs: {until: ["\\n", "Q:"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: first, filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    rows = [{"prompt": f"What does {name} {number} do?", "completion": sound} for number in range(12) for name, sound in ANIMALS.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"question": f"What does {name} {number} do?", "sound": sound} for number in range(20, 26) for name, sound in ANIMALS.items()]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for name, text in (("recipe", RECIPE), ("known", KNOWN), ("said", SAID)):
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def _in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(home / "runs"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "datasets"))
    monkeypatch.chdir(home)


def load(home: Path, *tasks: str, **decision: str) -> LoadedRecipe:
    return flow.load(home / "recipe.yaml", [f"evaluation.tasks=[{', '.join(tasks)}]", f"decision.deploy={json.dumps(decision)}"])


@pytest.fixture(scope="module")
def completer() -> LocalCompleter:
    model = Model(base="demo", dtype="float32")
    return LocalCompleter(load_model(model, torch.float32, torch.device("cpu")), load_tokenizer(model))


def test_without_the_extra_the_error_names_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "luthier.evaluate.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    recipe = load(home, "{name: easy, scorer: 'lm_eval:arc_easy:acc'}").recipe
    with pytest.raises(UsageError, match=r"needs the extra `harness` \(\S+ is not installed\)") as raised:
        flow.evaluate("demo", recipe=recipe)
    assert "luthier[harness]" in raised.value.change


@pytest.mark.parametrize(
    ("task", "what"),
    [
        ({"scorer": "lm_eval:arc_easy"}, "write lm_eval:TASK:METRIC"),
        ({"scorer": "lm_eval:arc_easy:acc", "split": "validation"}, "are not read"),
        ({"scorer": "lm_eval:arc_easy:acc", "max_new_tokens": 5}, "are not read"),
        ({"scorer": "lm_eval_chat:arc_easy:acc", "data": "rows.jsonl"}, "are not read"),
    ],
)
def test_what_a_task_of_the_harness_does_not_read_is_refused(task: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Task(name="easy", **task)


def test_its_metric_is_what_bounds_name_and_chooses_no_checkpoint(home: Path) -> None:
    assert metric_name("lm_eval:gsm8k:exact_match,strict-match") == "exact_match"
    assert metric_name("lm_eval_chat:evals/mine.yaml:acc_norm") == "acc_norm"
    with pytest.raises(RecipeError, match="best_by"):
        flow.load(home / "recipe.yaml", ["evaluation.tasks=[{name: easy, scorer: 'lm_eval:arc_easy:acc'}]", "checkpoints.best_by=easy.acc"])


def test_other_rows_are_not_asked_of_it(home: Path) -> None:
    """`--split` and `--data` ask rows of ours; `--limit` asks fewer of its own."""
    recipe = load(home, "{name: easy, scorer: 'lm_eval:arc_easy:acc'}", "{name: sound, scorer: contains}").recipe
    asked = [Options(split="validation").apply(recipe), Options(data=home / "rows.jsonl").apply(recipe), Options(limit=5).apply(recipe)]
    assert [[task.name for task in each.evaluation.tasks] for each in asked] == [["sound"], ["sound"], ["easy", "sound"]]
    assert asked[2].evaluation.tasks[0].limit == 5
    assert recipe.evaluation.timed == recipe.evaluation.tasks[1]


def test_a_changed_task_file_is_another_question(home: Path) -> None:
    task = Task(name="known", scorer="lm_eval:known.yaml:acc")
    before = asked_hash("prepared", [task])
    (home / "known.yaml").write_text(KNOWN + "metadata: {version: 2}\n")
    assert asked_hash("prepared", [task]) != before
    assert asked_hash("prepared", [Task(name="easy", scorer="lm_eval:arc_easy:acc")]) == "prepared"


def test_a_server_is_not_asked_for_probabilities(home: Path) -> None:
    def silent(body: Json) -> Reply:
        return Reply(body=whole("yes"))

    with stranger(silent) as server, pytest.raises(ModelError, match="a server does not tell"):
        flow.evaluate(server.url, recipe=load(home, "{name: easy, scorer: 'lm_eval:arc_easy:acc'}").recipe)
    assert server.bodies == []


@pytest.fixture(scope="module")
def model(completer: LocalCompleter) -> "HarnessModel":
    pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")
    from luthier.evaluate.harness import HarnessModel

    return HarnessModel(completer, Silent())


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def theirs(completer: LocalCompleter) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=completer.model, tokenizer=completer.tokenizer.pretrained, batch_size=1)


@pytest.mark.slow
def test_texts_are_as_probable_as_its_own_model_has_them(completer: LocalCompleter, model: "HarnessModel") -> None:
    """Contexts of all lengths, empty ones and such that end in a space, continuations of one token and of many."""
    contexts = ["", "Who", "Who is it? ", *(f"Q: what is {'the ' * length}thing?\nA:" for length in (1, 7, 40))]
    asked = requests(
        "loglikelihood", *((context, after) for context in contexts for after in (" yes", " No, never at all.", "\nIt is a cat"))
    )
    for (own, likeliest), (other, expected) in zip(model.loglikelihood(asked), theirs(completer).loglikelihood(asked, True), strict=True):
        assert own == pytest.approx(other, abs=1e-4) and likeliest == expected
    greedy = model.generate_until(requests("generate_until", ("What is four and two?", {"until": [], "max_gen_toks": 6})))
    if greedy[0]:
        assert model.loglikelihood(requests("loglikelihood", ("What is four and two?", greedy[0])))[0][1]


@pytest.mark.slow
def test_long_texts_are_weighed_in_windows_as_its_own_model_does(completer: LocalCompleter, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    from luthier.evaluate.harness import HarnessModel

    own, other = HarnessModel(completer, Silent()), theirs(completer)
    asked = requests("loglikelihood_rolling", *((("The quick brown fox jumps. " * length),) for length in (1, 5, 60)))
    assert own.loglikelihood_rolling(asked) == pytest.approx(other.loglikelihood_rolling(asked, True), abs=1e-3)
    monkeypatch.setattr(HarnessModel, "max_length", 32)
    other._max_length = 32
    assert own.loglikelihood_rolling(asked) == pytest.approx(other.loglikelihood_rolling(asked, True), abs=1e-3)


@pytest.mark.slow
def test_answers_and_prompts_are_those_of_its_own_model(completer: LocalCompleter, model: "HarnessModel") -> None:
    turns = [{"role": "user", "content": "What is four and two?"}]
    assert model.apply_chat_template(turns) == theirs(completer).apply_chat_template(turns)
    begun = [*turns, {"role": "assistant", "content": "It is"}]
    assert model.apply_chat_template(begun, add_generation_prompt=False) == theirs(completer).apply_chat_template(begun, False)
    options = {"until": ["\n", "er"], "max_gen_toks": 12}
    prompts = [model.apply_chat_template([{"role": "user", "content": text}]) for text in ("Who are you?", "Say hello", "Six and one?")]
    asked = requests("generate_until", *((prompt, options) for prompt in [*prompts, "Once upon", "The "]))
    own = model.generate_until(asked)
    assert own == theirs(completer).generate_until(asked, True) and any(own)
    with pytest.raises(RecipeError, match="at random"):
        model.generate_until(requests("generate_until", ("Who", {"do_sample": True, "temperature": 0.7})))


@pytest.mark.slow
def test_a_run_is_evaluated_on_tasks_of_the_harness_and_decided_against_its_base_row_by_row(home: Path) -> None:
    pytest.importorskip("lm_eval")
    known, said = "{name: known, scorer: 'lm_eval_chat:known.yaml:acc'}", "{name: said, scorer: 'lm_eval_chat:said.yaml:exact_match,first'}"
    flow.train(load(home, known, said, **{"known.acc": "better than base", "said.exact_match": ">= 0.5"}))
    verdict = flow.decide("animals")
    assert verdict.decision == "deploy", verdict.reasons
    assert {judged.metric: judged.difference.pairs for judged in verdict.judgements if judged.difference} == {"known.acc": 24}
    kept = report.read(home / "runs" / "animals" / "evaluations" / "tuned")
    assert {name: (task.metric, task.n) for name, task in kept.scores.tasks.items()} == {"known": ("acc", 24), "said": ("exact_match", 24)}
    row, written = kept.predictions["known"][0], kept.predictions["said"][0]
    assert (row.origin, row.reference, row.answer) == ("known:0", "meows", "meows") and row.tokens == 0
    assert "What does cat 20 do?" in str(row.messages[0]["content"]) and written.answer.startswith("meows")
    assert written.tokens > 1 and written.stopped and kept.scores.tokens_per_second
    assert kept.scores.latency is None  # no task of ours, by whose rows it could be timed


@pytest.mark.slow
def test_two_ranks_share_the_work_and_find_the_same(home: Path) -> None:
    pytest.importorskip("lm_eval")
    tasks = ["{name: known, scorer: 'lm_eval:known.yaml:acc_norm', limit: 9}", "{name: said, scorer: 'lm_eval:said.yaml:exact_match'}"]
    alone = flow.evaluate("demo", recipe=load(home, *tasks).recipe).report
    recipe = flow.load(home / "recipe.yaml", [f"evaluation.tasks=[{', '.join(tasks)}]", "parallel.data=2"]).recipe
    shared = flow.evaluate("demo", recipe=recipe).report
    assert shared.scores.tasks == alone.scores.tasks and alone.scores.tasks["known"].n == 9
    assert [row.answer for row in shared.predictions["said"]] == [row.answer for row in alone.predictions["said"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scorer", "kind", "what"),
    [
        ("lm_eval:arc_eazy:acc", RecipeError, "has no task 'arc_eazy'"),
        ("lm_eval:known.yaml:exact_match", RecipeError, "tells no exact_match"),
        ("lm_eval:said.yaml:exact_match,last", RecipeError, "tells no exact_match of last"),
        ("lm_eval:perplexity.yaml:word_perplexity", RecipeError, "no number in 0…1"),
        ("lm_eval:elsewhere.yaml:acc", DataError, "cannot be loaded"),
    ],
)
def test_what_the_harness_cannot_tell_is_said(home: Path, completer: LocalCompleter, scorer: str, kind: type[Exception], what: str) -> None:
    pytest.importorskip("lm_eval")
    from luthier.evaluate.harness import evaluate_harness

    rolling = KNOWN.partition("output_type")[0].replace("known", "perplexity") + "output_type: loglikelihood_rolling\n"
    (home / "perplexity.yaml").write_text(
        rolling + 'doc_to_text: ""\ndoc_to_target: "{{question}}"\nmetric_list: [{metric: word_perplexity}]\n'
    )
    (home / "elsewhere.yaml").write_text(KNOWN.replace("questions.jsonl", "none.jsonl"))
    with pytest.raises(kind, match=what) as raised:
        evaluate_harness(Task(name="t", scorer=scorer), completer, 0, Silent())
    assert isinstance(raised.value, RecipeError | DataError) and raised.value.change


@pytest.mark.slow
def test_a_group_of_tasks_is_told_by_task_and_drawn_by_seed(
    tmp_path: Path, completer: LocalCompleter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of tasks stands here for the thousands that come with the library, whose rows are on the hub."""
    lm_eval = pytest.importorskip("lm_eval.tasks")
    from luthier.evaluate import harness

    for name in ("known", "other"):
        (tmp_path / f"{name}.yaml").write_text(KNOWN.replace("task: known", f"task: {name}"))
    (tmp_path / "both.yaml").write_text("group: both\ntask: [known, other]\n")
    monkeypatch.setattr(harness, "_known", lambda: lm_eval.TaskManager(include_path=str(tmp_path), include_defaults=False))
    task = Task(name="both", scorer="lm_eval:both:acc", limit=20)
    found = [harness.evaluate_harness(task, completer, seed, Silent()) for seed in (0, 0, 1)]
    assert {result.scores.n for result in found} == {20} and set(found[0].scores.groups) == {"known", "other"}
    drawn = [[row.origin for row in result.predictions] for result in found]
    assert drawn[0] == drawn[1] != drawn[2]
    assert math.isclose(found[0].scores.value, sum(row.score for row in found[0].predictions) / 20)

"""What is wrong with a recipe is said all at once: where, what was found, what is expected, the nearest name (trap 29)."""

from pathlib import Path

import pytest

from luthier.recipe import fields
from luthier.recipe.foreign import FOREIGN
from luthier.recipe.schema import PAIRS, Recipe
from tests.recipe.recipes import LEAST, refusal


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lora: {rr: 8}", "lora.rr: unknown key `rr`\n  did you mean `lora.r`?"),
        ("trainin: {epochs: 1}", "trainin: unknown key `trainin`\n  did you mean `training`?"),
        ("training: {eval_steps: 10}", "training.eval_steps: unknown key `eval_steps`\n  it belongs in `checkpoints.eval_steps`"),
        ("r: 8", "r: unknown key `r`\n  it belongs in `lora.r`"),
        ("split: {test: 0.2}", "split: unknown key `split`\n  it belongs in `data.split` or `evaluation.tasks.split`"),
        ("lora: {lora_alpha: 32}", "lora.lora_alpha: unknown key `lora_alpha`\n  here it is `lora.alpha`: The update is scaled by"),
        ("max_seq_length: 512", "max_seq_length: unknown key `max_seq_length`\n  here it is `data.max_length`: Longest row in tokens"),
        ("decision: {zzz: 1}", "decision.zzz: unknown key `zzz`\n  known here: deploy, abort, confidence"),
        ("<<: {seed: 1}", "<<: unknown key `<<`"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_where_it_belongs(tmp_path: Path, line: str, said: str) -> None:
    assert refusal(tmp_path, f"{LEAST}{line}\n").startswith(f"recipe.yaml:6: {said}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lora: {r: 0}", "lora.r: found 0, expected a whole number > 0"),
        ("lora: {r: 8.0}", "lora.r: found 8.0, expected a whole number > 0"),
        ("lora: {r: true}", "lora.r: found true, expected a whole number > 0"),
        ("lora: 8", "lora: found 8, expected a section or `none`\n  its keys: r, alpha, dropout"),
        ("lora: nnoe", 'lora: found "nnoe", expected a section or `none`\n  did you mean `none`?'),
        ("lora:", "lora: found nothing, expected a section or `none`"),
        ('training: {learning_rate: "1e-4"}', 'training.learning_rate: found "1e-4", expected a number > 0 and ≤ 1'),
        ("training: {learning_rate: .nan}", "training.learning_rate: found NaN, expected a number > 0 and ≤ 1"),
        ("training: [epochs]", "training: found a list, expected a section\n  its keys: epochs, max_steps"),
        (
            "checkpoints: {eval_steps: 0}",
            "checkpoints.eval_steps: found 0, expected a whole number > 0, a number > 0 and ≤ 1, `auto` or `epoch`",
        ),
        ("checkpoints: {final: bset}", 'checkpoints.final: found "bset", expected `auto`, `best` or `last`\n  did you mean `best`?'),
        ("evaluation: {baseline: {x: {value: a}}}", 'evaluation.baseline.x.value: found "a", expected a number'),
        ("evaluation: {tasks: [{name: a b}]}", 'evaluation.tasks.0.name: found "a b", expected text like `^[A-Za-z0-9_-]+$`'),
    ],
)
def test_a_wrong_value_is_named_with_what_was_found_and_what_is_expected(tmp_path: Path, line: str, said: str) -> None:
    assert refusal(tmp_path, f"{LEAST}{line}\n").startswith(f"recipe.yaml:6: {said}")


def test_a_number_where_text_belongs_wants_quotes(tmp_path: Path) -> None:
    assert refusal(tmp_path, LEAST.replace("coach", "2024")).endswith("  write it in quotes")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("training:\n  epochs: 3\n  max_steps: 5\n", "recipe.yaml:8: training.max_steps: `training.epochs` and `training.max_steps` both"),
        ("training:\n  lr_cycles: 2\n", "recipe.yaml:7: training.lr_cycles: `lr_cycles` is read by lr_scheduler cosine_with_restarts only"),
        (
            "checkpoints:\n  best_by: chess.exact\n",
            "recipe.yaml:7: checkpoints.best_by: checkpoints.best_by is 'chess.exact', which is none of: loss",
        ),
        ("decision:\n  deploy:\n    answers.exact: high\n", "recipe.yaml:8: decision.deploy.answers.exact: bound 'high' of answers.exact"),
        ("  split:\n    train: 0.9\n", "recipe.yaml:6: data.split: the shares add up to 1.1, not 1"),
    ],
)
def test_what_cannot_stand_together_is_named_with_the_line_of_one_of_them(tmp_path: Path, lines: str, said: str) -> None:
    assert refusal(tmp_path, LEAST + lines).startswith(said)


def test_all_problems_come_in_one_error_a_line_each_in_the_files_order(tmp_path: Path) -> None:
    text = """\
name: coach
model: {bsae: demo}
data:
  sources: [{path: a.jsonl, format: csv}]
  split: {trian: 0.7, validation: 0.2, test: 0.1}
training:
  epochs: 3
  max_steps: 5
  learning_rate: 2
"""
    assert refusal(tmp_path, text, "lora.rr=8").splitlines() == [
        "recipe.yaml: 6 problems",
        "  recipe.yaml:2: model.bsae: unknown key `bsae`; did you mean `model.base`?",
        '  recipe.yaml:4: data.sources.0.format: found "csv", expected `auto`, `messages`, `prompt_completion`, `alpaca`, `sharegpt`, '
        "`interactions` or `labelled`",
        "  recipe.yaml:5: data.split.trian: unknown key `trian`; did you mean `data.split.train`?",
        "  recipe.yaml:8: training.max_steps: `training.epochs` and `training.max_steps` both say how long; keep one",
        "  recipe.yaml:9: training.learning_rate: found 2, expected a number > 0 and ≤ 1",
        "  override lora.rr=8: unknown key `rr`; did you mean `lora.r`?",
    ]


def test_a_typo_inside_a_mistyped_section_is_named_too(tmp_path: Path) -> None:
    assert refusal(tmp_path, LEAST + "lroa:\n  rr: 8\n").splitlines()[1:] == [
        "  recipe.yaml:6: lroa: unknown key `lroa`; did you mean `lora`?",
        "  recipe.yaml:7: lora.rr: unknown key `rr`; did you mean `lora.r`?",
    ]


def test_what_is_missing_is_named_under_the_nearest_line(tmp_path: Path) -> None:
    said = refusal(tmp_path, "name: coach\nmodel: {revision: main}\n")
    assert "recipe.yaml:2: model.base: is missing, expected text" in said
    assert "recipe.yaml: data: is missing, expected a section; its keys: sources, " in said


def test_every_foreign_name_leads_to_a_key_that_exists_and_is_none_itself() -> None:
    assert set(FOREIGN.values()) <= set(fields.known_keys())
    assert not {name for name, target in FOREIGN.items() if name in (known.rpartition(".")[2] for known in fields.known_keys())}


@pytest.mark.parametrize("pair", PAIRS)
def test_the_schema_refuses_both_of_a_pair(pair: tuple[tuple[str, str], tuple[str, str]]) -> None:
    least = {"name": "a", "model": {"base": "demo"}, "data": {"sources": [{"path": "a"}]}}
    with pytest.raises(ValueError, match="keep one"):
        Recipe.model_validate({**least, pair[0][0]: {pair[0][1]: 1e-3 if "ratio" in pair[0][1] else 1, pair[1][1]: 1}})

"""`k=v` on the command line says the same as a line in the file."""

from pathlib import Path

import pytest

from tests.recipe.recipes import LEAST, loaded, refusal


def test_a_value_is_a_yaml_scalar_or_flow(tmp_path: Path) -> None:
    overrides = (
        "training.epochs=1",
        "lora.target_modules=[q_proj, v_proj]",
        "model.trust_remote_code=true",
        'model.revision="1"',
        "data.group_by=",
    )
    recipe = loaded(tmp_path, LEAST, *overrides).recipe
    assert recipe.training.epochs == 1
    assert recipe.lora != "none" and recipe.lora.target_modules == ("q_proj", "v_proj")
    assert recipe.model.trust_remote_code is True
    assert recipe.model.revision == "1"
    assert recipe.data.group_by == ""


def test_signs_that_yaml_reads_otherwise_need_no_quotes(tmp_path: Path) -> None:
    overrides = ("data.sources.0.path=/data/*.jsonl", "decision.deploy.answers.exact=>= 0.98", "data.system_prompts=You are: a coach # 1")
    recipe = loaded(tmp_path, LEAST, *overrides).recipe
    assert recipe.data.sources[0].path == "/data/*.jsonl"
    assert recipe.decision.deploy == {"answers.exact": ">= 0.98"}
    assert recipe.data.system_prompts == "You are: a coach # 1"


def test_items_of_a_list_are_set_by_number_and_the_next_number_adds_one(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, LEAST, "data.sources.1.path=/b.jsonl", "data.sources.1.where={kept: true}").recipe
    assert [source.path for source in recipe.data.sources] == [str(tmp_path / "rows.jsonl"), "/b.jsonl"]
    assert recipe.data.sources[1].where == {"kept": True}
    assert [source.path for source in loaded(tmp_path, LEAST, "data.sources=[{path: /c.jsonl}]").recipe.data.sources] == ["/c.jsonl"]


def test_the_dots_of_a_metrics_name_belong_to_the_name(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, LEAST, "evaluation.baseline.answers.exact.value=0.9", "evaluation.baseline.answers.exact.n=302").recipe
    assert not isinstance(recipe.evaluation.baseline, str)
    assert recipe.evaluation.baseline["answers.exact"].n == 302


def test_lora_none_is_replaced_by_a_section_and_a_section_by_none(tmp_path: Path) -> None:
    assert loaded(tmp_path, LEAST + "lora: {r: 4}\n", "lora=none").recipe.lora == "none"
    lora = loaded(tmp_path, LEAST + "lora: none\n", "lora.r=8").recipe.lora
    assert lora != "none" and lora.r == 8


@pytest.mark.parametrize(
    ("written", "override", "left"),
    [
        ("epochs: 3", "training.max_steps=5", {"max_steps": 5, "warmup_ratio": 0.03}),
        ("max_steps: 5", "training.epochs=1", {"epochs": 1, "warmup_ratio": 0.03}),
        ("warmup_ratio: 0.1", "training.warmup_steps=2", {"epochs": 3, "warmup_steps": 2}),
        ("warmup_steps: 2", "training.warmup_ratio=0.1", {"epochs": 3, "warmup_ratio": 0.1}),
    ],
)
def test_an_override_of_one_of_a_pair_takes_the_other_away(tmp_path: Path, written: str, override: str, left: dict[str, float]) -> None:
    training = loaded(tmp_path, f"{LEAST}training: {{{written}}}\n", override).recipe.training
    assert training.model_dump(include={"epochs", "max_steps", "warmup_ratio", "warmup_steps"}, exclude_none=True) == left


def test_both_of_a_pair_on_the_command_line_contradict_each_other(tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST, "training.epochs=1", "training.max_steps=5")
    assert said == "override training.max_steps=5: `training.epochs` and `training.max_steps` both say how long\n  keep one"


def test_the_later_of_two_overrides_of_a_key_holds(tmp_path: Path) -> None:
    assert loaded(tmp_path, LEAST, "seed=1", "seed=2").recipe.seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.rr=8", "override lora.rr=8: unknown key `rr`\n  did you mean `lora.r`?"),
        ("lroa.r=8", "override lroa.r=8: unknown key `lroa`\n  did you mean `lora`?"),
        ("epochs=1", "override epochs=1: unknown key `epochs`\n  it belongs in `training.epochs`"),
        ("lora.r=many", 'override lora.r=many: found "many", expected a whole number > 0'),
        (
            "data.sources=[{path: /a, fromat: auto}]",
            "override data.sources=[{path: /a, fromat: auto}]: data.sources.0.fromat: unknown key `fromat`",
        ),
        ("data.sources.2.path=a", "override data.sources.2.path=a: data.sources has no item 2\n  the next is data.sources.1"),
        ("data.sources.path=a", "override data.sources.path=a: data.sources is a list\n  name an item by its number"),
        ("lora.target_modules=[q_proj", "override lora.target_modules=[q_proj: not YAML: "),
        ("lora.r", "override lora.r: not of the form key=value"),
        ("lora..r=8", "override lora..r=8: not of the form key=value"),
    ],
)
def test_a_wrong_override_is_named_with_what_it_should_be(tmp_path: Path, override: str, said: str) -> None:
    assert refusal(tmp_path, LEAST, override).startswith(said)

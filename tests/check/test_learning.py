"""Four answers are learned by heart by a slice of the model, and end: for every kind of model, and not where the end is not trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from luthier.check import learning
from luthier.check.learning import answers_of, by_heart
from luthier.check.outcome import Outcome
from luthier.check.tokens import Case, case_of
from luthier.core.progress import Silent
from luthier.data.prepare import prepare
from luthier.data.store import TokenRow
from luthier.data.tokenizer import load_tokenizer
from luthier.recipe.schema import Recipe
from tests.model.zoo import tiny
from tests.train.workshop import Workshop

Changed = Callable[[TokenRow], TokenRow]


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    return Workshop(tmp_path)


def case(recipe: Recipe) -> Case:
    return case_of(load_tokenizer(recipe.model), recipe.data, prepare(recipe, Silent()))


def outcome(workshop: Workshop, family: str = "qwen3", changed: Changed = lambda row: row, **sections: Any) -> Outcome:
    """Of rows as they are, or as another preparation would have left them."""
    if sections.get("lora") != "none":
        sections["lora"] = {"r": 16, "alpha": 32, **sections.get("lora", {})}  # the layers here are 32 wide
    recipe = workshop.recipe(**sections)
    found = case(recipe)
    sample = tuple(replace(sampled, rows=tuple(map(changed, sampled.rows))) for sampled in found.sample)
    return by_heart(replace(found, sample=sample), recipe, tiny(family).config.to_dict())


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"lora": "none"},
        {"lora": {"use_dora": True, "dropout": 0.2}},
        {"model": {"quantization": "nf4"}},
        {"data": {"max_length": 40, "over_length": "truncate"}},
    ],
    ids=str,
)
def test_rows_as_they_are_prepared_are_learned_and_stop(workshop: Workshop, sections: dict[str, Any]) -> None:
    found = outcome(workshop, **sections)
    assert found.state == "pass", found
    learned, _, targets, *_ = found.compared.split()
    assert found.compared.startswith(f"{learned} of {learned} tokens of 4 answers in ") and targets == learned


def test_an_adapter_that_is_too_small_for_these_rows_is_no_fault(workshop: Workshop) -> None:
    found = outcome(workshop, lora={"r": 1, "target_modules": ["q_proj"]})
    assert found.state == "not applicable" and "of a slice, loss" in found.compared


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "qwen3_moe", "qwen3_5_moe_text"])
def test_every_kind_of_model_learns(workshop: Workshop, family: str) -> None:
    found = outcome(workshop, family)
    assert found.state == "pass", found


def test_an_end_of_turn_that_is_not_trained_is_found_by_what_is_written(workshop: Workshop) -> None:
    """As where padding is masked by its id, which is the end of a turn: the answers are learned, and nothing ends them."""

    def endless(row: TokenRow) -> TokenRow:
        supervised = row.supervised.copy()
        supervised[np.flatnonzero(supervised)[-1]] = False
        return replace(row, supervised=supervised)

    found = outcome(workshop, changed=endless)
    assert found.state == "fail" and "rows-30.jsonl" in found.compared and "learned to its end, and goes on, and 3 more" in found.compared
    assert "model.chat_template" in found.change


def test_a_step_that_trains_nothing_is_found(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def spare(model: nn.Module) -> dict[str, nn.Parameter]:
        return {"one that is in no model": nn.Parameter(next(model.parameters()).detach().clone())}

    monkeypatch.setattr(learning, "trained_of", spare)
    found = outcome(workshop)
    assert found.state == "fail" and found.compared.startswith("the loss does not fall (")


def test_what_takes_too_long_says_how_far_it_came(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "STEPS", 2)
    monkeypatch.setattr(learning, "FELL", 1.1)
    found = outcome(workshop)
    assert found.state == "not applicable" and "in 2 steps of a slice" in found.compared


def test_other_targets_than_answers_and_too_few_rows_are_not_tried(workshop: Workshop) -> None:
    assert "other tokens than whole answers" in outcome(workshop, data={"train_on": "all"}).compared
    assert outcome(workshop, num_rows=3, data={"split": {"train": 1, "validation": 0, "test": 0}}).state == "not applicable"
    assert "matches no layer" in outcome(workshop, lora={"target_modules": ["model.layers.17.self_attn.q_proj"]}).compared


def test_what_stands_before_an_answer_is_cut_and_each_row_begins_with_a_token_of_its_own(workshop: Workshop) -> None:
    found = case(workshop.recipe())
    answers, stops = answers_of(found, 6)
    assert len({int(answer.row.ids[0]) for answer in answers}) == 4 and not any(answer.row.supervised[0] for answer in answers)
    assert all(len(answer.row) <= 6 and answer.row.supervised[-1] and int(answer.row.ids[-1]) in stops for answer in answers)
    assert all(answer.stops for answer in answers)

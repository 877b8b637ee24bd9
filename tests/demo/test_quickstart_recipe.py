"""The quickstart's recipe fits the schema, the log and the base it is shipped with."""

import json

import pytest
from ruamel.yaml import YAML
from transformers import AutoTokenizer

from luthier.demo import BASE, DATA, RECIPE
from luthier.demo.interactions import NUM_GOOD, NUM_OVER_LONG
from luthier.recipe.schema import Recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.model_validate(YAML(typ="safe").load(RECIPE))


@pytest.fixture(scope="module")
def row_lengths(recipe) -> list[int]:
    """Tokens of every good row, prompt and answer, as the base's template renders them."""
    tokenizer, dialogues = AutoTokenizer.from_pretrained(BASE), []
    for line in DATA.read_text(encoding="utf-8").splitlines():
        if '"success": true' in line and '"prompt": "' in line and '"response": "' in line:
            row = json.loads(line)
            turns = (("system", recipe.data.system_prompts[row["agent"]]), ("user", row["prompt"]), ("assistant", row["response"]))
            dialogues.append(tokenizer.apply_chat_template([{"role": role, "content": text} for role, text in turns], tokenize=False))
    return [len(ids) for ids in tokenizer(dialogues, add_special_tokens=False)["input_ids"]]


def test_every_agent_has_a_system_prompt(recipe):
    assert set(recipe.data.system_prompts) == set(NUM_GOOD)


def test_the_recipe_names_the_shipped_base_and_log(recipe):
    assert recipe.model.base == "demo" and (RECIPE.parent / recipe.data.sources[0].path) == DATA


def test_only_the_rows_with_a_pasted_log_are_over_length(recipe, row_lengths):
    longer = [length for length in row_lengths if length > recipe.data.max_length]
    assert len(longer) == NUM_OVER_LONG and min(longer) > 1500

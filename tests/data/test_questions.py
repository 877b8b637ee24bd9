"""A task's own rows: asked as they are, and part of what an evaluation is of."""

from pathlib import Path

import pytest

from luthier.data.fields import BadRowError
from luthier.data.questions import asked_hash, questions
from luthier.demo.questions import questions as of_the_base
from luthier.recipe.proof import Task


def test_every_row_of_the_file_is_asked_in_any_format(tmp_path: Path) -> None:
    (tmp_path / "known.jsonl").write_text('{"prompt": "2 + 2?", "completion": "4"}\n' * 2, encoding="utf-8")
    rows = questions(str(tmp_path / "known.jsonl"))
    assert [(row.prompt.messages[0].content, row.reference) for row in rows] == [("2 + 2?", "4")] * 2
    (tmp_path / "none.jsonl").write_text("", encoding="utf-8")
    assert questions(str(tmp_path / "none.jsonl")) == []


def test_a_row_that_cannot_be_asked_is_named(tmp_path: Path) -> None:
    (tmp_path / "known.jsonl").write_text('{"prompt": "2 + 2?", "completion": "4"}\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(BadRowError) as error:
        questions(str(tmp_path / "known.jsonl"))
    assert error.value.where.endswith("known.jsonl:2")


def test_other_questions_are_another_evaluation(tmp_path: Path) -> None:
    file = tmp_path / "known.jsonl"
    file.write_text("{}", encoding="utf-8")
    task = Task(name="known", data=str(file))
    before = asked_hash("0" * 16, [task])
    file.write_text("{ }", encoding="utf-8")
    assert len({before, asked_hash("0" * 16, [task]), asked_hash("1" * 16, [task]), asked_hash("0" * 16, [Task(name="answers")])}) == 4
    assert asked_hash("0" * 16, [Task(name="answers")]) == "0" * 16


def test_what_the_demo_base_is_asked_is_what_the_recipe_carries() -> None:
    kept = questions(str(Path(__file__).parents[2] / "recipes" / "data" / "demo-base.jsonl"))
    made = of_the_base(2026)
    assert len(kept) == 300
    for row in kept[:20]:
        assert next(made)["messages"] == [message.to_template() for message in row.conversation.messages]

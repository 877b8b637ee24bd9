"""What rows train on is held against what conversations say: each fault, planted in rows that were prepared rightly, is found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.check.outcome import Outcome
from luthier.check.tokens import (
    CHECKS,
    Case,
    Sampled,
    case_of,
    ends_of_turns,
    every_turn,
    held_out_rows,
    saved_template,
    served_ids,
    targets_left,
    trained_text,
)
from luthier.core import jsonl
from luthier.core.progress import Silent
from luthier.data.prepare import prepare
from luthier.data.store import RowWriter, TokenRow
from luthier.data.tokenizer import load_tokenizer
from tests.train.workshop import Workshop

DIALOGUE = [
    {"role": "user", "content": "What is four and two?"},
    {"role": "assistant", "content": "<think>\nfour, five, six\n</think>\n\nsix"},
    {"role": "user", "content": "And helpful?"},
    {"role": "assistant", "content": "yes, helpful"},
]


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    return Workshop(tmp_path)


def case(workshop: Workshop, **sections: Any) -> Case:
    recipe = workshop.recipe(**sections)
    return case_of(load_tokenizer(recipe.model), recipe.data, prepare(recipe, Silent()))


def dialogues(workshop: Workshop, **data: Any) -> Case:
    path = workshop.folder / "dialogues.jsonl"
    for number in range(20):
        turns = [{**DIALOGUE[0], "content": f"{DIALOGUE[0]['content']} {number}"}, *DIALOGUE[1:]]
        jsonl.append(path, {"messages": turns})
    return case(workshop, data={"sources": [{"path": str(path)}], **data})


def with_rows(case: Case, change: Callable[[TokenRow], TokenRow]) -> Case:
    """The case as another preparation would have left it."""
    sample = tuple(replace(sampled, rows=tuple(map(change, sampled.rows))) for sampled in case.sample)
    return replace(case, sample=sample)


def copies(case: Case, split: str) -> list[TokenRow]:
    """A split's rows, free of the file that they lie in."""
    rows = case.prepared.rows(split)
    return [replace(row, ids=row.ids.copy(), supervised=row.supervised.copy()) for row in (rows[number] for number in range(len(rows)))]


def found(outcome: Outcome, *words: str) -> None:
    assert outcome.state == "fail", outcome
    assert all(word in outcome.compared for word in words), outcome.compared
    assert outcome.change


@pytest.mark.parametrize("data", [{}, {"train_on": "last_assistant"}, {"thinking": "strip"}, {"thinking": "mask"}, {"train_on": "all"}])
def test_rows_as_they_are_prepared_have_none_of_the_faults(workshop: Workshop, data: dict[str, Any]) -> None:
    for one in (case(workshop, data=data), dialogues(workshop, **data)):
        assert {check.__name__: check(one).state for check in CHECKS if check(one).state == "fail"} == {}
    states = [check(dialogues(workshop)).state for check in CHECKS]
    assert states == ["pass"] * len(CHECKS)


def test_a_prompt_that_a_server_would_render_otherwise_is_found(workshop: Workshop) -> None:
    def shifted(row: TokenRow) -> TokenRow:
        ids = row.ids.copy()
        ids[1] += 1
        return replace(row, ids=ids)

    found(served_ids(with_rows(case(workshop), shifted)), "from token 1 on")


def test_an_end_of_turn_that_is_masked_is_found(workshop: Workshop) -> None:
    def endless(row: TokenRow) -> TokenRow:
        supervised = row.supervised.copy()
        supervised[np.flatnonzero(supervised)[-1]] = False
        return replace(row, supervised=supervised)

    broken = with_rows(case(workshop), endless)
    found(ends_of_turns(broken), "an answer ends with")
    found(trained_text(broken), "rows-30.jsonl")


def test_an_answer_of_which_a_part_is_not_trained_is_found(workshop: Workshop) -> None:
    def half(row: TokenRow) -> TokenRow:
        supervised = row.supervised.copy()
        supervised[np.flatnonzero(supervised)[0]] = False
        return replace(row, supervised=supervised)

    found(trained_text(with_rows(case(workshop), half)), "decoded targets of")


def test_an_earlier_turn_that_is_shown_without_its_thinking_is_found(workshop: Workshop) -> None:
    """As Qwen3's template renders a whole dialogue: one row, in which the first answer's thought is gone."""
    right = dialogues(workshop)
    without = dialogues(workshop, thinking="strip")
    wrong = tuple(replace(one, rows=other.rows) for one, other in zip(right.sample, without.sample, strict=True))
    broken = replace(right, sample=wrong)
    found(every_turn(broken), "turn 3")
    assert every_turn(right).state == "pass"


def test_rows_without_a_target_are_found(workshop: Workshop) -> None:
    one = case(workshop)
    kept = copies(one, "train")
    kept[3] = replace(kept[3], supervised=np.zeros(len(kept[3]), np.bool_))
    with RowWriter(one.prepared.folder, "train") as writer:
        for number, row in enumerate(kept):
            writer.add([row], number)
    found(targets_left(one), "row 3 has no target")


def test_a_template_that_is_not_what_is_saved_is_found(workshop: Workshop) -> None:
    one = case(workshop)
    other = replace(one.tokenizer, template_hash="0" * 64)
    found(saved_template(replace(one, tokenizer=other)), "the template's hash")


def test_held_out_rows_that_were_trained_on_are_found(workshop: Workshop) -> None:
    one = case(workshop)
    with RowWriter(one.prepared.folder, "validation") as writer:
        writer.add(copies(one, "train")[:1], 0)
    found(held_out_rows(one), "1 whole rows of validation also stand in train")


def test_what_was_cut_is_not_held_against_what_a_server_renders(workshop: Workshop) -> None:
    one = case(workshop, data={"max_length": 36, "over_length": "truncate"})
    assert {sampled.whole for sampled in one.sample} == {False, True}
    assert served_ids(one).state == "pass" and isinstance(one.sample[0], Sampled)

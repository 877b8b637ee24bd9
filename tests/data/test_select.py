"""Rows are kept by field, by success, once each, and at most so many per group; what is left out has a reason."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.chat import Conversation, Message
from luthier.core.errors import RecipeError
from luthier.data.rows import Example, RawRow
from luthier.data.select import FAILED, Deduplicator, cap, check_where, wanted
from luthier.recipe.schema import Source

WORDS = [f"word{number}" for number in range(400)]


def example(prompt: str, answer: str = "yes", *, group: str = "", origin: str = "rows.jsonl:1", system: str = "") -> Example:
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    if system:
        messages = (Message(role="system", content=system), *messages)
    return Example(conversation=Conversation(messages=messages), origin=origin, group=group, key=prompt, reference=answer)


def reason(fields: dict[str, Any], where: dict[str, Any], format: Any = "messages") -> str:
    return wanted(RawRow(file="rows.jsonl", line=1, fields=fields), Source(path="rows.jsonl", where=where), format)


@pytest.mark.parametrize(
    ("found", "value"),
    [
        ("textbook", "textbook"),
        ("textbook", ("games", "textbook")),
        (True, True),
        ("True", True),
        ("false", False),
        (False, "false"),
        (3, 3),
        ("3", 3),
        (3.0, 3),
        ("3.0", 3),
        (3, "3"),
        ("0.5", 0.5),
    ],
)
def test_where_keeps_a_row_whose_column_has_the_value(found: object, value: object) -> None:
    assert reason({"a": found}, {"a": value}) == ""


@pytest.mark.parametrize(
    ("found", "value"),
    [("Textbook", "textbook"), (1, True), (True, 1), ("yes", True), ("3x", 3), (None, "None"), (["a"], "a"), ("", False)],
)
def test_where_drops_a_row_whose_column_has_another_value(found: object, value: object) -> None:
    assert reason({"a": found}, {"a": value}) == "where a"


def test_a_row_without_the_column_does_not_match() -> None:
    assert reason({"b": 1}, {"b": 1, "a": 1}) == "where a"


def test_a_column_that_no_row_has_is_refused_with_the_nearest() -> None:
    source = Source(path="rows.jsonl", where={"sucess": True})
    with pytest.raises(RecipeError, match="did you mean `success`"):
        check_where(source, {"success", "prompt"})
    check_where(source, {"sucess", "prompt"})


def test_failed_interactions_are_dropped_unless_where_asks_for_them() -> None:
    for failed in (False, "false", "False", 0, "0", None, ""):
        assert reason({"success": failed}, {}, "interactions") == FAILED
    for succeeded in (True, "true", "True", 1, "1", 1.0):
        assert reason({"success": succeeded}, {}, "interactions") == ""
    assert reason({}, {}, "interactions") == ""
    assert reason({"success": False}, {}, "messages") == ""
    assert reason({"success": False}, {"success": (True, False)}, "interactions") == ""
    mapped = Source(path="rows.jsonl", columns={"success": "ok"})
    assert wanted(RawRow(file="f", line=1, fields={"ok": False}), mapped, "interactions") == FAILED


def test_an_exact_duplicate_is_told_with_the_place_of_its_twin() -> None:
    once = Deduplicator("exact")
    assert once.seen(example("a", origin="rows.jsonl:1")) == ""
    assert once.seen(example("a", origin="rows.jsonl:2", system="Be brief.")) == "rows.jsonl:1"
    assert once.seen(example("a", origin="rows.jsonl:3")) == "rows.jsonl:1"


def test_another_answer_group_or_letter_is_no_exact_duplicate() -> None:
    once = Deduplicator("exact")
    for other in (example("a"), example("a", "no"), example("a", group="g"), example("A"), example("a ")):
        assert once.seen(other) == ""


def test_without_deduplication_nothing_is_a_twin() -> None:
    never = Deduplicator("none")
    assert [never.seen(example("a")) for _ in range(3)] == ["", "", ""]


def test_a_near_duplicate_is_found_and_a_different_text_is_not() -> None:
    near = Deduplicator("near")
    words = WORDS[:100]
    assert near.seen(example(" ".join(words), origin="rows.jsonl:1")) == ""
    one_word_changed = [*words[:50], "changed", *words[51:]]  # 5 of 97 5-grams: similarity 92 / 102 = 0.90
    assert near.seen(example(" ".join(one_word_changed).upper())) == "rows.jsonl:1"
    four_words_changed = [word if number % 25 else "changed" for number, word in enumerate(words)]  # about 17 of 97: 0.70
    assert near.seen(example(" ".join(four_words_changed))) == ""
    assert near.seen(example(" ".join(words), group="another")) == ""


def test_short_texts_are_near_only_where_all_their_words_agree() -> None:
    near = Deduplicator("near")
    assert near.seen(example("Is it?", "Yes.", origin="rows.jsonl:1")) == ""
    assert near.seen(example("is it", "yes")) == "rows.jsonl:1"
    assert near.seen(example("Was it?", "Yes.")) == ""
    for mark in ("?!", "…", "🎻"):
        assert near.seen(example(mark, mark)) == ""


def test_scripts_without_spaces_are_compared_by_character() -> None:
    text = "小提琴是一种弦乐器总共有四根弦靠弦和弓摩擦产生声音它被广泛地运用在古典音乐中在历史上的许多时期都很流行"
    near = Deduplicator("near")
    assert near.seen(example(text, origin="rows.jsonl:1")) == ""
    assert near.seen(example(text[:-1] + "些")) == "rows.jsonl:1"
    assert near.seen(example(text[::-1])) == ""


def test_twins_are_found_among_texts_that_share_most_of_their_words() -> None:
    rng, near = random.Random(0), Deduplicator("near")
    shared = " ".join(WORDS[:60])
    texts = [shared + " " + " ".join(rng.choices(WORDS, k=30)) for _ in range(300)]
    assert not any(near.seen(example(text, origin=str(number))) for number, text in enumerate(texts))
    assert [near.seen(example("so " + text)) for text in texts] == [str(number) for number in range(300)]


@given(st.lists(st.text(alphabet="ab ", max_size=6), max_size=30), st.sampled_from(["exact", "near"]))
def test_the_same_rows_in_the_same_order_leave_the_same_rows(prompts: list[str], method: Any) -> None:
    def kept() -> list[str]:
        once = Deduplicator(method)
        return [str(number) for number, prompt in enumerate(prompts) if not once.seen(example(prompt, origin=str(number)))]

    assert kept() == kept()
    if method == "exact":
        assert len(kept()) == len(set(prompts))


GROUPED = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=60)


def placed(rows: list[tuple[str, int]]) -> list[Example]:
    return [example(str(key), group=group) for group, key in rows]


@given(GROUPED, st.integers(1, 8), st.integers(0, 3))
def test_a_cap_leaves_each_group_its_rows_or_the_most_there_may_be(rows: list[tuple[str, int]], most: int, seed: int) -> None:
    kept = cap(placed(rows), most, seed)
    assert kept == sorted(set(kept))
    for group in "abc":
        assert sum(rows[position][0] == group for position in kept) == min(most, sum(row[0] == group for row in rows))


@given(GROUPED, GROUPED, st.integers(1, 8))
def test_added_rows_bring_no_capped_row_back(old: list[tuple[str, int]], new: list[tuple[str, int]], most: int) -> None:
    after = {position for position in cap(placed(old + new), most, 1) if position < len(old)}
    assert after <= set(cap(placed(old), most, 1))


@pytest.mark.parametrize("seed", range(4))
def test_a_cap_takes_no_key_whole_before_others(seed: int) -> None:
    kept = cap(placed([("a", 0)] * 100 + [("a", key) for key in range(1, 101)]), 50, seed)
    assert 10 < sum(position < 100 for position in kept) < 40  # 25 on average, standard deviation 3.1


def test_a_cap_chooses_by_seed_not_by_order() -> None:
    rows = placed([("a", key) for key in range(100)])
    chosen = {rows[position].key for position in cap(rows, 10, 1)}
    assert {rows[::-1][position].key for position in cap(rows[::-1], 10, 1)} == chosen
    assert {rows[position].key for position in cap(rows, 10, 2)} != chosen
    assert cap(rows, "all", 1) == list(range(100))

"""Asking a task of rows, with a completer that is nothing but a rule."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from luthier.core.chat import Completion, Conversation, Message
from luthier.core.errors import DataError, RecipeError
from luthier.core.progress import Advance, Silent
from luthier.data.rows import Example
from luthier.evaluate.task import ROWS_AT_A_TIME, choose, evaluate_task
from luthier.recipe.proof import Task


def example(question: str, answer: str, *, row: int = 1, group: str = "") -> Example:
    turns = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Example(conversation=Conversation(messages=turns), origin=f"log.jsonl:{row}", group=group, key=question, reference=answer)


class Rule:
    """Answers by a function of the last user turn; at most `max_new_tokens` characters, each of them a token."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer
        self.asked: list[int] = []

    def complete(self, conversations: Sequence[Conversation], *, max_new_tokens: int) -> list[Completion]:
        self.asked.append(len(conversations))
        texts = [self.answer(conversation.messages[-1].content) for conversation in conversations]
        return [
            Completion(
                text=text[:max_new_tokens],
                num_prompt_tokens=1,
                num_tokens=min(len(text), max_new_tokens),
                stopped=len(text) <= max_new_tokens,
                first_token_seconds=0.1,
                seconds=0.1 * len(text),
            )
            for text in texts
        ]


EXAMPLES = [example(f"{a}+1", str(a + 1), row=a, group="even" if a % 2 == 0 else "odd") for a in range(1, 41)]
SUM = Rule(lambda question: str(sum(int(part) for part in question.split("+"))))


def test_right_answers_are_counted_with_their_interval_and_per_group() -> None:
    only_even = Rule(lambda question: str(int(question.split("+")[0]) + 1) if int(question.split("+")[0]) % 2 == 0 else "?")
    result = evaluate_task(Task(name="sums"), EXAMPLES, only_even, 0, Silent())
    scores = result.scores
    assert (scores.metric, scores.value, scores.n, scores.cut) == ("exact", 0.5, 40, 0)
    assert scores.low == pytest.approx(0.338, abs=1e-3)
    assert {group: (share.value, share.n) for group, share in scores.groups.items()} == {"even": (1.0, 20), "odd": (0.0, 20)}


def test_predictions_keep_question_reference_and_answer_in_the_rows_order() -> None:
    result = evaluate_task(Task(name="sums"), EXAMPLES[:2], SUM, 0, Silent())
    first, second = result.predictions
    assert (first.origin, first.reference, first.answer, first.score) == ("log.jsonl:1", "2", "2", 1.0)
    assert first.messages == ({"role": "user", "content": "1+1"},) and second.origin == "log.jsonl:2"
    assert result.tokens == 2 and result.seconds >= 0


def test_an_answer_that_calls_a_tool_is_scored_against_the_call_as_it_is_written() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 1}}\n</tool_call>'
    calls = ({"name": "add", "arguments": {"a": 1, "b": 1}},)
    turns = (Message(role="user", content="1+1"), Message(role="assistant", content="", tool_calls=calls))
    row = Example(conversation=Conversation(messages=turns), origin="log.jsonl:1", group="", key="1+1", reference=call)
    for said, score in ((call, 1.0), ("", 0.0)):
        (prediction,) = evaluate_task(Task(name="calls"), [row], Rule(lambda _, said=said: said), 0, Silent()).predictions
        assert (prediction.reference, prediction.score) == (call, score)


def test_cut_answers_are_counted() -> None:
    assert evaluate_task(Task(name="sums", max_new_tokens=1), EXAMPLES, SUM, 0, Silent()).scores.cut == 32  # sums of 10…41


def test_a_limit_chooses_by_hash_so_that_new_rows_displace_few() -> None:
    chosen = choose(EXAMPLES, 10, 7)
    assert len(chosen) == 10 and chosen == [row for row in EXAMPLES if row in chosen]
    assert chosen != choose(EXAMPLES, 10, 8) and chosen != EXAMPLES[:10]
    reordered = choose(EXAMPLES[::-1], 10, 7)
    assert {row.origin for row in reordered} == {row.origin for row in chosen}
    assert set(choose(EXAMPLES[:30], 10, 7)) - set(chosen) <= set(EXAMPLES[:30])
    assert len(set(row.origin for row in choose(EXAMPLES[:30], 10, 7)) & {row.origin for row in chosen}) >= 5
    assert choose(EXAMPLES, "all", 7) == choose(EXAMPLES, 40, 7) == EXAMPLES


def test_many_rows_are_asked_in_parts_and_progress_is_told() -> None:
    told: list[int] = []

    class Told(Silent):
        def task(self, name: str, total: int) -> AbstractContextManager[Advance]:
            told.append(-total)
            return _Advance(told)

    many = [example(f"{row}+1", str(row + 1), row=row) for row in range(300)]
    completer = Rule(SUM.answer)
    assert evaluate_task(Task(name="sums"), many, completer, 0, Told()).scores.value == 1
    assert completer.asked == [ROWS_AT_A_TIME, ROWS_AT_A_TIME, 44] and told == [-300, 128, 256, 300]


class _Advance(AbstractContextManager[Advance]):
    def __init__(self, told: list[int]) -> None:
        self.told = told

    def __enter__(self) -> Advance:
        return lambda done, text: self.told.append(done)

    def __exit__(self, *error: object) -> None:
        return None


def test_a_task_without_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="no rows"):
        evaluate_task(Task(name="sums"), [], SUM, 0, Silent())


def test_a_reference_that_cannot_be_scored_is_named_before_anything_is_generated() -> None:
    completer = Rule(SUM.answer)
    with pytest.raises(DataError, match="no number") as raised:
        evaluate_task(Task(name="sums", scorer="number"), [*EXAMPLES, example("?", "many", row=99)], completer, 0, Silent())
    assert str(raised.value).startswith("log.jsonl:99, task sums:") and completer.asked == []


def test_a_scorer_that_raises_names_row_and_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quotients_of_texts.py").write_text("def score(answer, reference): return answer / reference\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as raised:
        evaluate_task(Task(name="sums", scorer="quotients_of_texts:score"), EXAMPLES, SUM, 0, Silent())
    assert "log.jsonl:1, task sums" in str(raised.value) and "quotients_of_texts:score" in str(raised.value)


def test_a_task_whose_scorer_is_choice_may_choose_among_all_labels_of_its_references() -> None:
    class Chooses(Rule):
        def choose(self, conversations: Sequence[Conversation], *, labels: Sequence[str]) -> list[Completion]:
            assert labels == ["even", "odd"]
            return self.complete(conversations, max_new_tokens=99)

    rows = [example(str(number), "even" if number % 2 == 0 else "<think>hm</think>odd", row=number) for number in range(40)]
    scores = evaluate_task(Task(name="parity", scorer="choice", limit=10), rows, Chooses(lambda _: "odd"), 0, Silent()).scores
    assert (scores.metric, scores.n) == ("choice", 10) and 0 < scores.value < 1
    with pytest.raises(DataError, match="nothing to choose"):
        evaluate_task(Task(name="parity", scorer="choice"), rows[::2], Chooses(lambda _: "odd"), 0, Silent())

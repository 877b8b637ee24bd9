"""What an example becomes under the length rule, and why some become nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.chat import Conversation, Message
from luthier.core.errors import DataError
from luthier.data.fields import BadRowError
from luthier.data.render import Rendered, Renderer, shorten_user_texts
from luthier.data.rows import Example
from luthier.data.store import example_from_json
from luthier.recipe.schema import Data, Source
from luthier.runs.summary import Cut
from luthier.score.scorers import scorer
from tests.data.families import CALL, TWO_TURNS, family

CHATML = family("chatml")
ASKED = "The capital of France is Paris and the weather is sunny. " * 8


def example(*messages: Message) -> Example:
    return Example(conversation=Conversation(messages=messages), origin="log.jsonl:7", group="", key="a", reference=messages[-1].content)


def asked(*texts: str) -> Example:
    """User and assistant by turns."""
    return example(*(Message(role="assistant" if place % 2 else "user", content=text) for place, text in enumerate(texts)))


def rules(**fields: object) -> Data:
    return Data.model_validate({"sources": [Source(path="log.jsonl")], **fields})


def render(given_example: Example, family_name: str = "chatml", **fields: object) -> Rendered:
    return Renderer(family(family_name), rules(**fields)).render(given_example)


def text(rendered: Rendered) -> str:
    return CHATML.decode(rendered.rows[0].ids)


def trained(rendered: Rendered) -> str:
    return CHATML.decode(rendered.rows[0].ids[rendered.rows[0].supervised])


def test_a_row_that_fits_is_left_whole() -> None:
    whole = render(asked("Sure?", "yes"))
    limit = len(whole.rows[0])
    assert text(render(asked("Sure?", "yes"), max_length=limit)) == text(whole)
    assert whole.cut == Cut()


def test_a_row_over_max_length_is_dropped_with_its_length() -> None:
    limit = len(render(asked("Sure?", "yes")).rows[0]) - 1
    rendered = render(asked("Sure?", "yes"), max_length=limit)
    assert (rendered.rows, rendered.dropped, rendered.detail) == ((), "longer than max_length", f"{limit + 1} tokens")


def test_answers_are_counted_where_they_are_trained_on_whole_and_where_they_are_lost_with_their_row() -> None:
    dialogue = asked("Sure?", "yes", "Sure?", ASKED)
    assert render(dialogue).answers == 2
    assert render(dialogue, train_on="last_assistant").answers == 1
    dropped = render(dialogue, max_length=50)
    assert (dropped.dropped, dropped.answers) == ("longer than max_length", 2)
    cut = render(dialogue, max_length=50, over_length="truncate")
    assert (cut.answers, cut.cut.answers) == (1, 1)


def test_refuse_names_the_row_and_both_lengths() -> None:
    length = len(render(asked("Sure?", "yes")).rows[0])
    with pytest.raises(DataError, match=rf"^log\.jsonl:7: the row has {length} tokens, data\.max_length is 5\n  raise data\.max_length"):
        render(asked("Sure?", "yes"), max_length=5, over_length="refuse")


@settings(max_examples=50, deadline=None)
@given(
    limit=st.integers(40, 200),
    answer=st.sampled_from(["yes", "The answer is 4. " * 3]),
    question=st.sampled_from([ASKED, "é世🙂" * 30, "a b\n" * 50]),
)
def test_truncate_shortens_the_question_and_never_the_answer(limit: int, answer: str, question: str) -> None:
    rendered = render(asked(question, answer), max_length=limit, over_length="truncate")
    whole = render(asked(question, answer))
    if len(whole.rows[0]) <= limit:
        assert rendered.cut == Cut()
    else:
        assert limit - 4 <= len(rendered.rows[0]) <= limit  # some tokens may be lost where the cut falls into a character
        assert rendered.cut == Cut(rows=1, tokens=len(whole.rows[0]) - len(rendered.rows[0]), answers=0)
    assert trained(rendered) == answer + "<|im_end|>"
    question_left = text(rendered).removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
    assert question.startswith(question_left)


def test_the_longest_user_text_is_shortened_first() -> None:
    rendered = render(asked(ASKED, "yes", "Sure?", "yes"), max_length=60, over_length="truncate")
    assert "<|im_start|>user\nSure?<|im_end|>" in text(rendered)
    assert trained(rendered) == "yes<|im_end|>yes<|im_end|>"


def test_several_user_texts_are_brought_to_one_length() -> None:
    long, middle, short = "a b " * 50, "a b " * 20, "a"
    conversation = asked(long, "yes", middle, "yes", short, "yes").conversation
    excess = len(CHATML.encode(long)) + len(CHATML.encode(middle)) - 60
    shorter = [
        CHATML.encode(message.content) for message in shorten_user_texts(CHATML, conversation, excess).messages if message.role == "user"
    ]
    assert [len(ids) for ids in shorter] == [30, 30, 1]


def test_an_answer_that_must_be_cut_is_counted_and_gets_no_end_of_turn() -> None:
    rendered = render(asked(ASKED, ASKED), max_length=50, over_length="truncate")
    row = rendered.rows[0]
    assert len(row) == 50
    assert (rendered.cut.rows, rendered.cut.answers) == (1, 1)
    assert not set(row.ids[row.supervised].tolist()) & set(CHATML.stop_ids)
    assert ASKED.startswith(trained(rendered))


def test_tokens_and_answers_lost_in_a_dialogue_are_counted() -> None:
    dialogue = asked("Sure?", ASKED, "Sure?", "yes")
    whole = render(dialogue)
    rendered = render(dialogue, max_length=50, over_length="truncate")
    assert rendered.cut == Cut(
        rows=1,
        tokens=len(render(asked("", ASKED, "", "yes")).rows[0])
        - 50
        + len(whole.rows[0])
        - len(render(asked("", ASKED, "", "yes")).rows[0]),
        answers=2,
    )


def test_a_row_whose_prompt_alone_fills_max_length_is_dropped_for_want_of_a_target() -> None:
    system = Message(role="system", content=ASKED)
    rendered = render(example(system, *TWO_TURNS[:2]), max_length=40, over_length="truncate")
    assert (rendered.rows, rendered.dropped, rendered.answers) == ((), "no token to train on", 1)


def test_an_unstable_template_gives_a_row_for_each_answer() -> None:
    assert len(render(example(*TWO_TURNS), "qwen3").rows) == 2
    assert len(render(example(*TWO_TURNS), "qwen3", train_on="last_assistant").rows) == 1


def test_an_answer_of_nothing_but_thinking_has_no_target_when_thinking_is_masked() -> None:
    rendered = render(asked("Sure?", "<think>\nhm"), thinking="mask")
    assert (rendered.dropped, rendered.answers) == ("no token to train on", 0)  # not for its length


def test_the_reference_of_a_tool_call_is_what_the_template_writes() -> None:
    turns = (Message(role="user", content="Is it sunny in Paris?"), Message(role="assistant", content="", tool_calls=(CALL,)))
    rendered = render(example(*turns), "qwen3")
    found = example_from_json(rendered.line)
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert found.reference.endswith(call)
    row = rendered.rows[0]
    assert family("qwen3").decode(row.ids[row.supervised]) == found.reference + "<|im_end|>"
    assert scorer("exact")(call, found.reference) == 1.0


def test_the_example_that_is_kept_asks_what_the_shortened_row_asked() -> None:
    rendered = render(asked("Sure?", "yes", ASKED, "yes"), max_length=60, over_length="truncate")
    prompt = CHATML.prompt_ids(example_from_json(rendered.line).prompt)
    assert rendered.rows[0].ids[: len(prompt)].tolist() == prompt


def test_a_conversation_that_the_template_refuses_is_a_bad_row() -> None:
    refused = example(Message(role="system", content="Answer in one word."), *TWO_TURNS)
    with pytest.raises(BadRowError, match=r"^log\.jsonl:7: the chat template refuses the conversation: System role not supported"):
        render(refused, "gemma")
    skipped = render(refused, "gemma", on_bad_row="skip")
    assert (skipped.dropped, skipped.detail) == ("refused by the chat template", "System role not supported")

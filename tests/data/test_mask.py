"""Which tokens carry loss, and that ids are those the server will see."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.chat import Conversation, Message
from luthier.data.mask import Draft, draft_rows, without_thinking
from luthier.data.tokenizer import ChatTokenizer
from luthier.recipe.schema import Data, Source
from tests.data.families import GOLDEN, SPECIAL, TWO_TURNS, dump, family

FAMILIES = sorted(SPECIAL)

pieces = st.sampled_from(
    ["yes", "The answer", " is ", "4.", "\n", "\n\n", " ", "\t", "é", "世界", "🙂", "{}", "<|", "|>", "</s", "'s", "ÿ\u0301"]
)
texts = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(str.strip)
dialogues = st.lists(st.tuples(texts, texts), min_size=1, max_size=4).map(
    lambda pairs: Conversation(
        messages=tuple(
            message for asked, said in pairs for message in (Message(role="user", content=asked), Message(role="assistant", content=said))
        )
    )
)

WRITTEN = {
    "llama3": str.strip,
    "gemma": str.strip,
    "qwen3": lambda text: "<think>\n\n</think>\n\n" + text.lstrip("\n"),
    "thinking": lambda text: "\n</think>\n\n" + text,
    "alpaca": str.rstrip,
    "mistral": str.split,
}
"""What a family's template makes of an answer; `mistral` is compared without white space, which SentencePiece adds to every piece."""


def rules(**fields: object) -> Data:
    return Data.model_validate({"sources": [Source(path="rows.jsonl")], **fields})


def trained(tokenizer: ChatTokenizer, draft: Draft) -> str:
    return tokenizer.decode(token for token, supervised in zip(draft.ids, draft.supervised, strict=True) if supervised)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_as_in_the_golden_dump(name: str) -> None:
    assert dump(name) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(conversation=dialogues)
def test_trained_tokens_are_the_answers_and_their_ends_and_nothing_else(name: str, conversation: Conversation) -> None:
    tokenizer = family(name)
    written = WRITTEN.get(name, str)
    found = [trained(tokenizer, draft) for draft in draft_rows(tokenizer, conversation, rules())]
    expected = [message.content for message in conversation.messages if message.role == "assistant"]
    if name == "mistral":
        assert "".join(found).split() == "".join(f" {text}</s>" for text in expected).split()
    else:
        assert "".join(found) == "".join(written(text) + tokenizer.end_of_turn for text in expected)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(conversation=dialogues)
def test_what_precedes_each_answer_is_what_the_server_feeds_the_model(name: str, conversation: Conversation) -> None:
    tokenizer = family(name)
    messages = [message.to_template() for message in conversation.messages]
    served = [
        tokenizer.pretrained.apply_chat_template(messages[:turn], add_generation_prompt=True, return_dict=False)
        for turn in range(1, len(messages), 2)
    ]
    contexts = []
    for draft in draft_rows(tokenizer, conversation, rules()):
        starts = [place for place in range(1, len(draft.ids)) if draft.supervised[place] and not draft.supervised[place - 1]]
        contexts += [draft.ids[:start] for start in starts]
    assert contexts == served


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=30, deadline=None)
@given(conversation=dialogues)
def test_the_last_trained_token_of_each_answer_is_a_stop_token(name: str, conversation: Conversation) -> None:
    tokenizer = family(name)
    for draft in draft_rows(tokenizer, conversation, rules()):
        assert all(draft.ids[end - 1] in tokenizer.stop_ids and draft.supervised[end - 1] for end in draft.answers)


def test_where_prompt_and_answer_would_merge_each_turn_is_a_row() -> None:
    """A stable template is not enough: at the second turn the server encodes `assistant\\n` and `\\nyes` as one text, with one `\\n\\n`."""
    tokenizer, answer = family("chatml"), Message(role="assistant", content="\nyes")
    dialogue = Conversation(messages=(TWO_TURNS[0], answer, TWO_TURNS[2], answer))
    first, second = draft_rows(tokenizer, dialogue, rules())
    assert second.ids[: len(first.ids)] != first.ids
    assert tokenizer.decode(second.ids).startswith(tokenizer.decode(first.ids))


def test_train_on_chooses_the_turns() -> None:
    tokenizer, dialogue = family("chatml"), Conversation(messages=TWO_TURNS)
    first, second = (TWO_TURNS[turn].content + "<|im_end|>" for turn in (1, 3))
    between = "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    said = {mode: trained(tokenizer, draft_rows(tokenizer, dialogue, rules(train_on=mode))[0]) for mode in TRAIN_ON}
    assert said["assistant"] == first + second
    assert said["last_assistant"] == second
    assert said["completion"] == first + between + second
    assert said["all"] == "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n" + first + between + second


TRAIN_ON = ("assistant", "last_assistant", "completion", "all")


def test_all_tokens_of_an_unstable_dialogue_are_trained_on_once() -> None:
    tokenizer = family("qwen3")
    rows = draft_rows(tokenizer, Conversation(messages=TWO_TURNS), rules(train_on="all"))
    assert len(rows) == 1
    assert all(rows[0].supervised)


def test_the_first_token_of_a_row_has_nothing_to_be_predicted_from() -> None:
    row = draft_rows(family("chatml"), Conversation(messages=TWO_TURNS), rules(train_on="all"))[0].row(10**6)
    assert not row.supervised[0]
    assert row.supervised[1:].all()


@pytest.mark.parametrize("name", ["chatml", "qwen3", "thinking"])
def test_masked_thinking_stays_in_the_context_without_loss(name: str) -> None:
    tokenizer, dialogue = family(name), Conversation(messages=TWO_TURNS[:2])
    kept, masked = (draft_rows(tokenizer, dialogue, rules(thinking=thinking))[0] for thinking in ("keep", "mask"))
    assert masked.ids == kept.ids
    assert trained(tokenizer, masked) == "The answer is 4.<|im_end|>"
    assert "Let me think" in trained(tokenizer, kept)


def test_a_token_on_the_border_of_thinking_and_text_is_trained_on() -> None:
    tokenizer = family("chatml")
    answer = Message(role="assistant", content="<think>hm</think> the weather")
    row = draft_rows(tokenizer, Conversation(messages=(TWO_TURNS[0], answer)), rules(thinking="mask"))[0]
    assert trained(tokenizer, row) == " the weather<|im_end|>"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think>\n\nb", "b"),
        ("a <think>b</think> c<think>\nd\n</think>\ne", "a ce"),
        ("opened in the prompt\n</think>\n\nb", "b"),
        ("<think>never ends", ""),
        ("no thinking", "no thinking"),
    ],
)
def test_stripping_leaves_what_is_said(text: str, left: str) -> None:
    assert without_thinking(text) == left


def test_a_conversation_with_tools_shows_them_and_trains_on_the_call() -> None:
    assert '⟦<think>\n\n</think>\n\nLet me look.\n<tool_call>\n{"name": "get_weather"' in dump("qwen3")

"""Six formats become one conversation; a row that does not fit is named by file, line, field, found, expected and fix."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError, RecipeError
from luthier.data.formats import FORMATS, Format
from luthier.data.rows import Example, RawRow
from luthier.data.shape import BadRowError, Layout, detect, labels_of, layout_for, shape
from luthier.recipe.schema import Data, Source

Fields = dict[str, Any]
SYSTEM, USER, ANSWER = ("system", "Be brief."), ("user", "Hello?"), ("assistant", "Yes.")


def row(**fields: Any) -> RawRow:
    return RawRow(file="rows.jsonl", line=7, fields=fields)


def layout(first: RawRow, source: Source | None = None, **data: Any) -> Layout:
    source = source or Source(path="rows.jsonl")
    return layout_for(Data(sources=(source,), **data), source, first, labels=())


def shaped(fields: Fields, **data: Any) -> Example:
    return shape(row(**fields), layout(row(**fields), **data))


def turns(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.conversation.messages]


def openai(*messages: tuple[str, Any]) -> Fields:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def refusal(fields: Fields, **data: Any) -> str:
    with pytest.raises(BadRowError) as error:
        shaped(fields, **data)
    return str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        openai(SYSTEM, USER, ANSWER),
        openai(("developer", "Be brief."), USER, ("assistant", [{"type": "text", "text": "Y"}, {"type": "text", "text": "es."}])),
        {"prompt": "Hello?", "completion": "Yes.", "system": "Be brief."},
        {"prompt": openai(SYSTEM, USER)["messages"], "completion": openai(ANSWER)["messages"]},
        {"prompt": openai(SYSTEM, USER)["messages"], "completion": "Yes."},
        {"instruction": "Hello?", "input": "", "output": "Yes.", "system": "Be brief."},
        {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Yes."}], "system": "Be brief."},
        {"conversations": json.dumps([{"from": who, "value": what} for who, what in (SYSTEM, ("human", "Hello?"), ("gpt", "Yes."))])},
        {"agent": "a", "prompt": "Hello?", "response": "Yes.", "success": True, "system": "Be brief."},
        {"text": "Hello?", "label": "Yes.", "system": "Be brief."},
    ],
)
def test_every_format_gives_the_same_conversation(fields: Fields, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(fields))
    assert turns(shape(row(**fields), layout(row(**fields), Source(path=str(path))))) == [SYSTEM, USER, ANSWER]


def test_an_answer_is_kept_to_the_letter() -> None:
    assert turns(shaped({"prompt": " a\n", "completion": "\n b "})) == [("user", " a\n"), ("assistant", "\n b ")]


def test_alpaca_puts_its_input_below_the_instruction_and_its_history_before() -> None:
    fields = {"instruction": "Translate.", "input": "Haus", "output": "house", "history": [["Hello?", "Yes."]]}
    assert turns(shaped(fields)) == [USER, ANSWER, ("user", "Translate.\n\nHaus"), ("assistant", "house")]


def test_tool_calls_reach_the_template_as_they_came() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "", "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "No."},
    ]
    example = shaped({"messages": messages, "tools": tools})
    assert example.conversation.tools == tuple(tools)
    assert [message.to_template() for message in example.conversation.messages] == [
        *messages[:1],
        {**messages[1], "content": ""},
        *messages[2:],
    ]
    assert shaped({"messages": json.dumps(messages), "tools": json.dumps(tools)}).conversation == example.conversation


def test_an_answer_may_be_a_tool_call_alone() -> None:
    fields = {
        "messages": [{"role": "user", "content": "Rain?"}, {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": {}}]}]
    }
    assert shaped(fields).answer.tool_calls == ({"name": "weather", "arguments": {}},)


def test_older_function_calls_become_tool_calls() -> None:
    function = {"name": "weather", "arguments": {"city": "Ulm"}}
    messages = {"messages": [{"role": "user", "content": "Rain?"}, {"role": "assistant", "function_call": function}]}
    sharegpt = {"conversations": [{"from": "human", "value": "Rain?"}, {"from": "function_call", "value": json.dumps(function)}]}
    for fields in (messages, sharegpt):
        assert shaped(fields).answer.tool_calls == ({"type": "function", "function": function},)


def test_reasoning_beside_an_answer_becomes_its_thinking() -> None:
    fields = {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4", "reasoning_content": "two twos"}]}
    assert shaped(fields).answer.content == "<think>\ntwo twos\n</think>\n\n4"


def test_labelled_joins_its_columns_and_lists_the_labels_of_the_rows_it_keeps(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"title": "T", "body": body, "class": label, "year": 1} for body, label in (("B", "sound"), (None, "mail "), ("C", 3), ("D", True))
    ]
    path.write_text(
        "".join(json.dumps(fields) + "\n" for fields in [*rows, {**rows[0], "class": "other", "year": 2}, {"class": []}]) + "broken\n"
    )
    source = Source(path=str(path), columns={"text": ("title", "body"), "label": "class"}, where={"year": 1})
    found = layout_for(Data(sources=(source,)), source, row(**rows[0]), labels_of([(source, row(**rows[0]))]))
    assert turns(shape(row(**rows[0]), found)) == [
        ("system", "Answer with one of: 3, mail, sound, true."),
        ("user", "T\n\nB"),
        ("assistant", "sound"),
    ]
    assert turns(shape(row(**rows[1]), found))[1:] == [("user", "T"), ("assistant", "mail")]
    assert turns(shape(row(**rows[0]), layout(row(**rows[0]), source, system_prompts="Sort it.")))[0] == ("system", "Sort it.")


def test_too_many_labels_to_list_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "label": number}) + "\n" for number in range(101)))
    with pytest.raises(RecipeError, match="more than 100 different labels"):
        labels_of([(Source(path=str(path)), row(text="t", label=1))])


def test_a_group_gets_its_system_prompt_and_a_rows_own_stays() -> None:
    prompts = {"coder": "You code.", "tester": "You test."}
    asked = {"agent": "tester", "prompt": "Hello?", "response": "Yes."}
    example = shaped(asked, group_by="agent", system_prompts=prompts)
    assert (example.group, turns(example)[0]) == ("tester", ("system", "You test."))
    assert turns(shaped({**asked, "system": "Be brief."}, group_by="agent", system_prompts=prompts))[0] == SYSTEM
    assert turns(shaped({**asked, "system": " "}, group_by="agent", system_prompts=prompts))[0] == ("system", "You test.")
    said = refusal({**asked, "agent": "cook"}, group_by="agent", system_prompts=prompts)
    assert "no prompt for group `cook`; it has `coder`, `tester`" in said and "rows.jsonl:7" in said


def test_prompts_per_group_need_groups() -> None:
    with pytest.raises(RecipeError, match=r"data\.group_by is empty"):
        shaped({"prompt": "a", "completion": "b"}, system_prompts={"coder": "You code."})


def test_group_and_key_are_the_columns_values_as_json_spells_them() -> None:
    example = shaped({"prompt": "a", "completion": "b", "level": 3, "paid": True}, group_by="paid", keep_together="level")
    assert (example.group, example.key) == ("true", "3")


def test_rows_of_one_prompt_share_a_key_unless_kept_together_by_a_column() -> None:
    one = shaped({"prompt": "a  b", "completion": "1", "system": "s", "source": ""})
    other = shaped({"prompt": "a b\n", "completion": "2", "source": None})
    assert one.key == other.key != shaped({"prompt": "a c", "completion": "1"}).key
    assert shaped({"prompt": "a b", "completion": "1", "source": None}, keep_together="source").key == one.key


@pytest.mark.parametrize(
    ("fields", "columns", "expected"),
    [
        ({"messages": []}, (), "messages"),
        ({"messages": [], "prompt": "", "prompt_id": 1}, (), "messages"),
        ({"conversations": []}, (), "sharegpt"),
        ({"prompt": "", "completion": ""}, (), "prompt_completion"),
        ({"prompt": "", "response": "", "agent": ""}, (), "interactions"),
        ({"instruction": "", "output": "", "text": ""}, (), "alpaca"),
        ({"summary": "", "section": ""}, ("text", "label"), "labelled"),
        ({"question": "", "completion": ""}, ("prompt",), "prompt_completion"),
        ({"chat": [], "prompt": "", "completion": ""}, ("messages",), "messages"),
    ],
)
def test_a_format_is_known_by_its_fields(fields: Fields, columns: tuple[str, ...], expected: str) -> None:
    assert detect(fields, columns) == expected


def test_fields_of_no_format_and_of_two_are_refused_with_what_is_there_and_what_is_needed() -> None:
    with pytest.raises(DataError) as unknown:
        layout(row(question="a", answer="b"))
    assert all(
        part in str(unknown.value) for part in ("rows.jsonl", "`answer`, `question`", "format:", "columns:", "alpaca: instruction, output")
    )
    with pytest.raises(DataError, match="2 formats, messages and prompt_completion"):
        layout(row(messages=[], prompt="a", completion="b"))


def test_a_wrong_key_of_columns_is_refused_with_the_nearest() -> None:
    source = Source(path="rows.jsonl", format="prompt_completion", columns={"promt": "question"})
    with pytest.raises(DataError, match="did you mean `prompt`"):
        layout(row(question="a", completion="b"), source)
    with pytest.raises(RecipeError, match="`prompt` is given 2 columns"):
        layout(row(a="a"), Source(path="rows.jsonl", format="prompt_completion", columns={"prompt": ("a", "b")}))


def test_a_missing_column_is_refused_with_the_nearest_even_where_the_field_is_optional() -> None:
    source = Source(path="rows.jsonl", format="prompt_completion", columns={"completion": "anwser", "system": "sytem"})
    found = layout(row(prompt="a", answer="b", system="c"), source)
    with pytest.raises(BadRowError, match=r"rows\.jsonl:7: field `sytem` is missing"):
        shape(row(prompt="a", answer="b", system="c"), found)
    with pytest.raises(BadRowError, match="did you mean `answer`"):
        shape(row(prompt="a", answer="b", sytem="c"), found)
    assert "data.group_by" in refusal({"prompt": "a", "completion": "b"}, group_by="agent")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": "a", "completion": 42}, "field `completion`: found the number 42, expected text"),
        ({"prompt": "a", "completion": None}, "field `completion`: found nothing, expected text"),
        ({"prompt": "a", "completion": " \n"}, "field `completion`: found empty text, expected text that is not empty"),
        ({"prompt": "", "completion": "b"}, "field `prompt`: found empty text"),
        ({"prompt": "a", "completion": []}, "field `completion`: found a list of 0, expected text"),
        ({"messages": "hello"}, "field `messages`: found the text 'hello', expected a list"),
        ({"messages": []}, "there are no turns, expected an assistant's answer as the last turn"),
        ({"messages": ["hi"]}, "field `messages[0]`: found the text 'hi', expected an object"),
        (openai(USER), "the last turn is of role user"),
        (openai(USER, ANSWER, USER), "the last turn is of role user"),
        (openai(ANSWER), "there is no user turn"),
        (openai(USER, SYSTEM, ANSWER), "turn 2 is a system turn, expected one system turn at most, and that first"),
        (openai(SYSTEM, SYSTEM, USER, ANSWER), "turn 2 is a system turn"),
        (openai(USER, ("bot", "b")), "field `messages[1].role`: found the text 'bot', expected one of system, developer, user"),
        (openai(USER, ("assistant", "")), "field `messages[1].content`: found empty text, expected text that is not empty, or tool_calls"),
        (
            openai(("user", [{"type": "image_url", "image_url": {}}]), ANSWER),
            "field `messages[0].content[0].type`: found the text 'image_url'",
        ),
        ({"messages": [{"from": "human", "value": "a"}]}, "set `format: sharegpt, columns: {conversations: …}`"),
        ({"conversations": openai(USER, ANSWER)["messages"]}, "set `format: messages, columns: {messages: …}`"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}, "messages[1].weight"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "tool_calls[0].function.name",
        ),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}]}, "none, as only an assistant calls tools"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "reasoning_content": "hm"}]},
            "messages[1].content",
        ),
        ({**openai(USER, ANSWER), "tools": "look"}, "field `tools`: found the text 'look', expected a list"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "weather()"}]},
            "function_call[0].function",
        ),
        ({"instruction": "", "input": " ", "output": "b"}, "field `instruction`: found empty text"),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, "field `history[0]`: found a list of 1, expected a pair"),
    ],
)
def test_a_row_that_does_not_fit_says_where_and_what(fields: Fields, said: str) -> None:
    message = refusal(fields)
    assert message.startswith("rows.jsonl:7: ") and said in message and "\n  " in message


def test_tools_nested_beyond_reason_are_a_bad_row() -> None:
    tool: Fields = {}
    for _ in range(900):
        tool = {"properties": tool}
    assert "at most 64 levels" in refusal({**openai(USER, ANSWER), "tools": [tool]})


def test_an_empty_system_turn_is_none() -> None:
    assert turns(shaped(openai(("system", " "), USER, ANSWER))) == [USER, ANSWER]


def test_null_and_absent_columns_of_optional_fields_are_nothing() -> None:
    assert turns(shaped({"instruction": "a", "input": None, "output": "b", "system": None, "history": None})) == [
        ("user", "a"),
        ("assistant", "b"),
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "function", "type", "text"]), inner, max_size=4),
    max_leaves=8,
)
texts = st.text(min_size=1, max_size=5)
roles = st.sampled_from(["user", "assistant", "human", "gpt", "system", "developer", "tool", "function_call", "observation"])
calls = st.lists(st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": texts | json_values})}), max_size=2)
turn_like = st.fixed_dictionaries(
    {"role": roles, "from": roles, "content": texts | json_values, "value": texts | calls | json_values},
    optional={"tool_calls": calls | json_values, "function_call": json_values, "weight": json_values, "reasoning_content": texts},
)
cells = st.lists(turn_like, min_size=1, max_size=4) | texts | json_values


@st.composite
def rows_of_a_format(draw: st.DrawFn) -> tuple[Format, Fields]:
    """Rows that are often right: every required column, roles and texts where they belong, and any JSON now and then."""
    form = draw(st.sampled_from(sorted(FORMATS)))
    required = dict.fromkeys(FORMATS[form].required, cells)
    return form, draw(
        st.fixed_dictionaries({"g": texts | st.integers(), **required}, optional=dict.fromkeys(FORMATS[form].optional, texts | cells))
    )


@settings(max_examples=150, deadline=None)
@given(rows_of_a_format())
def test_no_json_object_raises_anything_but_a_bad_row(drawn: tuple[Format, Fields]) -> None:
    form, fields = drawn
    source = Source(path="rows.jsonl", format=form)
    found = layout_for(Data(sources=(source,), system_prompts="s", group_by="g", keep_together="g"), source, row(**fields), labels=())
    try:
        example = shape(RawRow(file="f", line=1, fields=fields), found)
    except BadRowError as error:
        assert error.where == "f:1" and error.what and error.change
        return
    assert example.answer.role == "assistant"
    assert example.answer.content.strip() or example.answer.tool_calls
    assert [message.role for message in example.prompt.messages].count("system") == 1
    assert example.key

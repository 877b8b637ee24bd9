"""Lists of turns as messages: OpenAI's form and ShareGPT's, and the order in which turns may stand.

The order: at most one system turn, and that first; at least one user turn; an assistant's answer last. Between them any
order goes (an assistant may open, several tool results or user turns may follow each other): whether a template can
render it is the template's to say.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.chat import Message, Role
from luthier.data.fields import MEND, BadRowError, Cell, parsed

OPENAI_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SHAREGPT_ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def openai_turns(turns: Cell) -> list[Message]:
    """Messages of a list of `{role, content, …}`."""
    return [_openai_turn(turn) for turn in turns.items()]


def sharegpt_turns(turns: Cell) -> list[Message]:
    """Messages of a list of `{from, value}`; a `function_call` becomes an assistant's tool calls."""
    return [_sharegpt_turn(turn) for turn in turns.items()]


def check_order(messages: Sequence[Message], where: Cell) -> None:
    """Refuses turns that are no dialogue to learn an answer from."""
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise _out_of_order(where, f"turn {roles.index('system', 1) + 1} is a system turn", "one system turn at most, and that first")
    if not roles or roles[-1] != "assistant":
        last = f"the last turn is of role {roles[-1]}" if roles else "there are no turns"
        raise _out_of_order(where, last, "an assistant's answer as the last turn")
    if "user" not in roles:
        raise _out_of_order(where, "there is no user turn", "a user turn before the answer")


def _out_of_order(where: Cell, found: str, expected: str) -> BadRowError:
    return BadRowError(f"field `{where.path}`: {found}, expected {expected}", where=where.origin, change=MEND)


def _openai_turn(turn: Cell) -> Message:
    role = _role(turn.get("role"), OPENAI_ROLES, "format: sharegpt, columns: {conversations: …}" if "from" in turn.object() else "")
    if turn.get("weight").value == 0:
        raise turn.get("weight").bad("no weight or 1", "to learn from an answer in part of its turns, set data.train_on: last_assistant")
    calls = _tool_calls(turn)
    if calls and role != "assistant":
        raise turn.get("tool_calls").bad("none, as only an assistant calls tools")
    content = _content(turn.get("content"))
    _not_empty(turn.get("content"), role, content, bool(calls))
    if role == "assistant" and (thinking := turn.get("reasoning_content").text_or_nothing().strip("\n")):
        content = f"<think>\n{thinking}\n</think>\n\n" + content.lstrip("\n")
    return Message(
        role=role,
        content=content,
        tool_calls=calls,
        tool_call_id=turn.get("tool_call_id").text_or_nothing(),
        name=turn.get("name").text_or_nothing(),
    )


def _content(content: Cell) -> str:
    """Text, nothing, or OpenAI's list of text parts joined."""
    if not isinstance(content.value, list):
        return content.text_or_nothing()
    parts = []
    for part in content.items():
        if part.get("type").value != "text":
            raise part.get("type").bad("`text`", "Luthier trains on text; remove images, sound and files from the row")
        parts.append(part.get("text").text())
    return "".join(parts)


def _tool_calls(turn: Cell) -> tuple[Mapping[str, Any], ...]:
    """OpenAI's `tool_calls` unchanged, or its older single `function_call` in their form."""
    calls, old = turn.get("tool_calls"), turn.get("function_call")
    if old.value is not None:
        calls = turn.at("function_call", [{"type": "function", "function": old.object()}])
    return _calls(calls)


def _calls(calls: Cell) -> tuple[Mapping[str, Any], ...]:
    """The calls unchanged, once each is seen to name its function (in `function`, or at its top as Hermes data does)."""
    objects = calls.objects()
    for index, call in enumerate(objects):
        found = calls.at(index, call)
        (found.get("function") if "function" in call else found).get("name").text()
    return objects


def _sharegpt_turn(turn: Cell) -> Message:
    role = _role(turn.get("from"), SHAREGPT_ROLES, "format: messages, columns: {messages: …}" if "role" in turn.object() else "")
    value = turn.get("value")
    if turn.get("from").value == "function_call":
        functions = parsed(value.value)
        wrapped = [{"type": "function", "function": function} for function in (functions if isinstance(functions, list) else [functions])]
        return Message(role=role, content="", tool_calls=_calls(turn.at("function_call", wrapped)))
    content = value.text_or_nothing()
    _not_empty(value, role, content, False)
    return Message(role=role, content=content)


def _role(cell: Cell, roles: Mapping[str, Role], other_format: str) -> Role:
    name = cell.value
    if isinstance(name, str) and name in roles:
        return roles[name]
    raise cell.bad(f"one of {', '.join(roles)}", f"these look like turns of another form: set `{other_format}`" if other_format else MEND)


def _not_empty(cell: Cell, role: Role, content: str, has_calls: bool) -> None:
    if role in ("user", "assistant") and not content.strip() and not has_calls:
        raise cell.bad("text that is not empty" + (", or tool_calls" if role == "assistant" else ""))

"""A raw row as an Example: its conversation by the source's format, its group, and the key that the split goes by."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from luthier.core.chat import Conversation, Message, Role
from luthier.core.errors import DataError, RecipeError
from luthier.core.redact import redact
from luthier.data.fields import BadRowError, Cell, cell, listed
from luthier.data.formats import FORMATS, Format, check_columns, detect
from luthier.data.mask import stripped
from luthier.data.read import read_rows
from luthier.data.rows import Example, RawRow
from luthier.data.select import wanted
from luthier.data.similar import digest, plain, prompt_text
from luthier.data.turns import check_order, openai_turns, sharegpt_turns
from luthier.recipe.schema import Data, Source

__all__ = ["BadRowError", "Layout", "detect", "labels_of", "layout_for", "shape"]

MOST_LABELS = 100
"""More labels than this are not listed in a default system prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a source's rows become examples. `columns` has every field of the format, its own name where the recipe gives none."""

    format: Format
    columns: Mapping[str, tuple[str, ...]]
    named: frozenset[str]
    """Fields whose column the recipe names: a row without that column is bad even where the field is optional."""
    system_prompts: str | Mapping[str, str]
    group_by: str
    keep_together: str
    strip_thinking: bool


def layout_for(data: Data, source: Source, first: RawRow, labels: Sequence[str]) -> Layout:
    """The layout of a source from the recipe, its first row, and the labels that `labelled` lists where there is no system prompt."""
    format = _format(source, first)
    columns = {name: _columns(source, name) for name in FORMATS[format].all}
    if isinstance(data.system_prompts, Mapping) and data.system_prompts and not data.group_by:
        change = "set data.group_by to the column whose values are the prompts' names"
        raise RecipeError("gives a prompt per group, but data.group_by is empty", where="data.system_prompts", change=change)
    prompts = data.system_prompts
    if format == "labelled" and not prompts:
        prompts = f"Answer with one of: {', '.join(labels)}."
    return Layout(
        format=format,
        columns=columns,
        named=frozenset(source.columns),
        system_prompts=prompts,
        group_by=data.group_by,
        keep_together=data.keep_together,
        strip_thinking=data.thinking == "strip",
    )


def labels_of(sources: Iterable[tuple[Source, RawRow]]) -> list[str]:
    """The labels of all labelled sources, each given with its first row, sorted.

    One list for all of them: lists that differ by file would tell the model which file a row is from, and so its label.
    """
    labels: set[str] = set()
    for source, first in sources:
        if _format(source, first) != "labelled":
            continue
        (column,) = _columns(source, "label")
        for label in _labels(source, column):
            labels.add(label)
            if len(labels) > MOST_LABELS:
                raise RecipeError(
                    f"with column `{column}` of {source.path} there are more than {MOST_LABELS} different labels, too many for a prompt",
                    where="data.system_prompts",
                    change="write the instruction yourself in data.system_prompts, or check `columns.label`",
                )
    return sorted(labels)


def shape(row: RawRow, layout: Layout) -> Example:
    """The row as an example, or a BadRowError that names file:line, field, found, expected and fix."""
    group = _group(row, layout)
    fields = _Row(row, layout)
    messages = CONVERSATIONS[layout.format](fields)
    if messages[0].role == "system" and not messages[0].content.strip():
        messages = messages[1:]
    if messages[0].role != "system" and (prompt := _system_prompt(row, layout, group)):
        messages = [Message(role="system", content=prompt), *messages]
    tools = fields.optional("tools").objects() if "tools" in layout.columns else ()
    conversation = Conversation(messages=tuple(messages), tools=tools)
    if layout.strip_thinking:
        conversation = stripped(conversation)
    key, reference = _key(row, layout, conversation), conversation.messages[-1].content
    return Example(conversation=conversation, origin=row.origin, group=group, key=key, reference=reference)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row seen through its layout: fields of the format instead of columns of the file."""

    row: RawRow
    layout: Layout

    def required(self, field: str) -> Cell:
        return cell(self.row, self.layout.columns[field][0])

    def optional(self, field: str) -> Cell:
        column = self.layout.columns[field][0]
        if field in self.layout.named:
            return cell(self.row, column)
        return Cell(origin=self.row.origin, path=column, value=self.row.fields.get(column))

    def system(self) -> list[Message]:
        text = self.optional("system").text_or_nothing()
        return [Message(role="system", content=text)] if text.strip() else []


def _messages(row: _Row) -> list[Message]:
    turns = row.required("messages")
    messages = openai_turns(turns)
    check_order(messages, turns)
    return messages


def _sharegpt(row: _Row) -> list[Message]:
    turns = row.required("conversations")
    messages = [*row.system(), *sharegpt_turns(turns)]
    check_order(messages, turns)
    return messages


def _prompt_completion(row: _Row) -> list[Message]:
    return _asked_and_answered(row, "completion")


def _interactions(row: _Row) -> list[Message]:
    return _asked_and_answered(row, "response")


def _asked_and_answered(row: _Row, answer: str) -> list[Message]:
    """Prompt and answer, each a text or a list of OpenAI's messages."""
    messages = row.system()
    sides: tuple[tuple[str, Role], ...] = (("prompt", "user"), (answer, "assistant"))
    for field, role in sides:
        found = row.required(field)
        if isinstance(found.value, list) and found.value:
            messages += openai_turns(found)
        else:
            messages.append(Message(role=role, content=found.full_text()))
    check_order(messages, row.required(answer))
    return messages


def _alpaca(row: _Row) -> list[Message]:
    messages = row.system()
    history = row.optional("history")
    for turn in history.items() if history.value else ():
        pair = turn.items()
        if len(pair) != 2:
            raise turn.bad("a pair of instruction and answer")
        messages += [Message(role="user", content=pair[0].full_text()), Message(role="assistant", content=pair[1].full_text())]
    instruction, more = row.required("instruction"), row.optional("input").text_or_nothing()
    asked = "\n\n".join(part for part in (instruction.text(), more) if part.strip())
    if not asked:
        raise instruction.bad("text that is not empty, here or in `input`")
    return [*messages, Message(role="user", content=asked), Message(role="assistant", content=row.required("output").full_text())]


def _labelled(row: _Row) -> list[Message]:
    """The text columns joined by a blank line; empty ones are left out."""
    parts = [cell(row.row, column) for column in row.layout.columns["text"]]
    text = "\n\n".join(part.text() for part in parts if part.value is not None and part.text().strip())
    if not text:
        raise parts[0].bad("text that is not empty")
    return [*row.system(), Message(role="user", content=text), Message(role="assistant", content=_label(row.required("label")))]


CONVERSATIONS: Mapping[Format, Callable[[_Row], list[Message]]] = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "interactions": _interactions,
    "labelled": _labelled,
}


def _format(source: Source, first: RawRow) -> Format:
    try:
        format: Format = detect(first.fields, source.columns) if source.format == "auto" else source.format
        check_columns(format, source.columns)
    except DataError as error:
        raise DataError(error.what, where=first.file, change=error.change) from error
    return format


def _columns(source: Source, field: str) -> tuple[str, ...]:
    named = source.columns.get(field, field)
    columns = (named,) if isinstance(named, str) else named
    if len(columns) != 1 and not (field == "text" and columns):
        raise RecipeError(
            f"`{field}` is given {len(columns)} columns",
            where="data.sources.columns",
            change="name one column; only `text` of labelled may list several",
        )
    return columns


def _label(found: Cell) -> str:
    label = found.scalar().strip()
    if not label:
        raise found.bad("a label that is not empty")
    return label


def _labels(source: Source, column: str) -> Iterator[str]:
    """The label of each row that the source keeps; bad rows are left to the pass that reports them."""
    for row in read_rows(source):
        if isinstance(row, RawRow) and not wanted(row, source, "labelled"):
            with suppress(BadRowError):
                yield _label(cell(row, column))


def _group(row: RawRow, layout: Layout) -> str:
    """The group's name, without secrets, because summaries, scores and findings tell it; two groups stay two."""
    if not layout.group_by:
        return ""
    name = cell(row, layout.group_by, "data.group_by").scalar()
    told = redact(name)
    return name if told == name else f"{told} {hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _key(row: RawRow, layout: Layout, conversation: Conversation) -> str:
    """The value of `keep_together`; where that is empty, the prompt's digest, so that one prompt never stands on two sides."""
    if layout.keep_together:
        found = cell(row, layout.keep_together, "data.keep_together")
        if found.value is not None and (key := found.scalar()):
            return key
    return digest(plain(prompt_text(conversation))).hex()


def _system_prompt(row: RawRow, layout: Layout, group: str) -> str:
    prompts = layout.system_prompts
    if isinstance(prompts, str):
        return prompts
    if prompts and group not in prompts:
        raise BadRowError(
            f"field `{layout.group_by}`: data.system_prompts has no prompt for group `{group}`; it has {listed(prompts)}",
            where=row.origin,
            change=f"add `{group}:` to data.system_prompts, or leave the group out with `where`",
        )
    return prompts[group] if prompts else ""

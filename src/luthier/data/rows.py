"""The two forms of a row before it is tokens: as it was read, and as a conversation to learn from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.core.chat import Conversation, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """One record of a file: line (JSONL, CSV), index from 1 (JSON list, Parquet)."""

    file: str
    line: int
    fields: Mapping[str, Any]

    @property
    def origin(self) -> str:
        """`file:line`, as errors and reports name it."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A conversation that ends in an assistant's turn, with what selecting, splitting and scoring need."""

    conversation: Conversation
    origin: str
    group: str
    """Value of `data.group_by`; empty without one."""
    key: str
    """Rows of one key stay on one side of the split."""
    reference: str
    """What the model should write: the answer's text; of one that calls tools, the calls too, as the chat template writes them."""

    @property
    def prompt(self) -> Conversation:
        """Everything before the last assistant turn: what is asked in evaluation."""
        return Conversation(messages=self.conversation.messages[:-1], tools=self.conversation.tools)

    @property
    def answer(self) -> Message:
        """The last assistant turn."""
        return self.conversation.messages[-1]

"""A conversation as token rows, and which tokens carry loss: ids are those the server will see, to the letter.

At each assistant turn the server encodes the rendered prompt as one text, and the model then adds tokens of its own. So a turn is
prompt ids, encoded whole, and answer ids, encoded as the prompt's continuation; a token never spans the border between them. A turn
continues the row before it if that row's ids are the beginning of its prompt's ids. Else it becomes a row of its own: templates of
Qwen3's kind remove `<think>` from earlier turns, and then no single row is what the server sees at both turns.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from luthier.core.chat import Conversation
from luthier.data.store import TokenRow
from luthier.data.tokenizer import ChatTokenizer, TurnIds
from luthier.recipe.schema import Data

THINKING = re.compile(r"<think>.*?(?:</think>\s*|\Z)", re.DOTALL)
REST_OF_THINKING = re.compile(r"\A(?:(?!<think>).)*?</think>\s*", re.DOTALL)
"""A thought whose `<think>` stands in the prompt."""


@dataclass(slots=True, kw_only=True)
class Draft:
    """A token row while it grows. `answers`: where each answer ends, its end-of-turn included."""

    ids: list[int]
    supervised: list[bool]
    answers: list[int]

    def begins(self, ids: list[int]) -> bool:
        """Whether `ids` start with this row."""
        return ids[: len(self.ids)] == self.ids

    def add(self, ids: list[int], supervised: list[bool]) -> None:
        """Append tokens."""
        self.ids += ids
        self.supervised += supervised

    def row(self, limit: int) -> TokenRow:
        """The first `limit` tokens as a TokenRow. The first token of all has nothing to be predicted from."""
        supervised = np.array(self.supervised[:limit], np.bool_)
        supervised[:1] = False
        return TokenRow(ids=np.array(self.ids[:limit], np.int32), supervised=supervised)


def draft_rows(tokenizer: ChatTokenizer, conversation: Conversation, data: Data) -> list[Draft]:
    """The conversation's token rows, whole: one where the template is prefix-stable on it, else one for each trained turn.

    `train_on` assistant: every answer and its end-of-turn. last_assistant: the last one. completion: everything after a row's
    first prompt. all: every token of the last turn's row, which holds the whole dialogue.
    """
    drafts: list[Draft] = []
    turns = [place for place, message in enumerate(conversation.messages) if message.role == "assistant"]
    for place in turns[-1:] if data.train_on == "last_assistant" else turns:
        before = Conversation(messages=conversation.messages[:place], tools=conversation.tools)
        spoken = Conversation(messages=conversation.messages[: place + 1], tools=conversation.tools)
        prompt = tokenizer.render(before, add_generation_prompt=True)
        answer = tokenizer.answer_text(prompt, spoken)
        turn = tokenizer.encode_turn(prompt, answer)
        if drafts and drafts[-1].begins(turn.prompt):
            new = turn.prompt[len(drafts[-1].ids) :]
            drafts[-1].add(new, [data.train_on in ("completion", "all")] * len(new))
        else:
            drafts.append(Draft(ids=turn.prompt, supervised=[data.train_on == "all"] * len(turn.prompt), answers=[]))
        targets = [True] * len(turn.answer)
        if data.thinking == "mask":
            for start, end in _thoughts(prompt, answer):
                first, last = (_tokens_within(tokenizer, prompt, answer[:border], turn) for border in (start, end))
                targets[first:last] = [False] * (last - first)
        drafts[-1].add(turn.answer, targets)
        drafts[-1].answers.append(len(drafts[-1].ids))
    return drafts[-1:] if data.train_on == "all" else drafts


def without_thinking(text: str) -> str:
    """The text without `<think>…</think>` and the white space after it; a thought that never ends goes whole."""
    return THINKING.sub("", REST_OF_THINKING.sub("", text))


def stripped(conversation: Conversation) -> Conversation:
    """The conversation without the assistant's thinking, in earlier turns too."""
    messages = (
        replace(message, content=without_thinking(message.content)) if message.role == "assistant" else message
        for message in conversation.messages
    )
    return replace(conversation, messages=tuple(messages))


def _thoughts(prompt: str, answer: str) -> list[tuple[int, int]]:
    """Character spans of thinking in an answer, the tags and the white space after them included."""
    spans = [match.span() for match in THINKING.finditer(answer)]
    opened = REST_OF_THINKING.match(answer) if prompt.rstrip().endswith("<think>") else None
    return [opened.span(), *spans] if opened else spans


def _tokens_within(tokenizer: ChatTokenizer, prompt: str, beginning: str, turn: TurnIds) -> int:
    """How many of an answer's tokens lie wholly in its `beginning`: a token that straddles the border belongs to what follows."""
    alone = tokenizer.encode_after(prompt, turn.prompt, beginning)
    same = zip(alone, turn.answer, strict=False)
    return next((place for place, (one, other) in enumerate(same) if one != other), min(len(alone), len(turn.answer)))

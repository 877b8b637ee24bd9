"""From an example to its token rows: template, loss mask and length rule, as the recipe's `data` section says."""

import bisect
from dataclasses import dataclass, field, replace

from luthier.core.chat import Conversation
from luthier.core.errors import DataError
from luthier.data.fields import BadRowError
from luthier.data.mask import Draft, draft_rows
from luthier.data.rows import Example
from luthier.data.store import TokenRow, example_to_json
from luthier.data.tokenizer import ChatTokenizer, TemplateRefused
from luthier.recipe.schema import Data
from luthier.runs.summary import NO_TARGET, Cut

TOO_LONG = "longer than max_length"
REFUSED = "refused by the chat template"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """An example's token rows, or why there are none; `cut` is what `max_length` cost."""

    rows: tuple[TokenRow, ...] = ()
    line: bytes = b""
    """The example as it was rendered, its user texts shortened and with its reference: a line of SPLIT.jsonl."""
    dropped: str = ""
    detail: str = ""
    """The numbers behind `dropped`."""
    cut: Cut = field(default_factory=Cut)
    answers: int = 0
    """That are trained on whole; of an example that is dropped for its length, those that are lost with it."""


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders examples by one tokenizer and one `data` section."""

    tokenizer: ChatTokenizer
    data: Data

    def render(self, example: Example) -> Rendered:
        """The example's token rows; raises BadRowError where the template refuses it, DataError where `over_length` does."""
        try:
            drafts = draft_rows(self.tokenizer, example.conversation, self.data)
            longest = max(len(draft.ids) for draft in drafts)
            if self.data.max_length == "fit" or longest <= self.data.max_length:
                return self._kept(example, drafts, longest, drafts)
            if self.data.over_length == "truncate":
                return self._truncated(example, drafts, self.data.max_length)
        except TemplateRefused as error:
            if self.data.on_bad_row == "skip":
                return Rendered(dropped=REFUSED, detail=error.what)
            change = "change the row or data.system_prompts to what it takes, set model.chat_template, or set data.on_bad_row to skip"
            raise BadRowError(f"the chat template refuses the conversation: {error.what}", where=example.origin, change=change) from error
        if self.data.over_length == "drop":
            return Rendered(dropped=TOO_LONG, detail=f"{longest} tokens", answers=_num_answers(drafts))
        change = "raise data.max_length, or set data.over_length to drop or truncate"
        raise DataError(f"the row has {longest} tokens, data.max_length is {self.data.max_length}", where=example.origin, change=change)

    def _truncated(self, example: Example, whole: list[Draft], limit: int) -> Rendered:
        """Shorten user texts and render again until the longest row fits; where there is no text left to take, cut the row's end."""
        drafts, conversation = whole, example.conversation
        while (excess := max(len(draft.ids) for draft in drafts) - limit) > 0:
            shorter = shorten_user_texts(self.tokenizer, conversation, excess)
            if shorter == conversation:
                break
            conversation = shorter
            drafts = draft_rows(self.tokenizer, conversation, self.data)
        return self._kept(replace(example, conversation=conversation), drafts, limit, whole)

    def _kept(self, example: Example, drafts: list[Draft], limit: int, whole: list[Draft]) -> Rendered:
        """The drafts' first `limit` tokens as rows, those without a target left out, and what they lost against the `whole` drafts."""
        rows = tuple(row for row in (draft.row(limit) for draft in drafts) if row.supervised.any())
        if not rows:
            longest = max(len(draft.ids) for draft in whole)
            return Rendered(dropped=NO_TARGET, detail=f"{longest} tokens", answers=_num_answers(whole) if longest > limit else 0)
        kept = [min(len(draft.ids), limit) for draft in drafts]
        lost = sum(len(draft.ids) for draft in whole) - sum(kept)
        shortened = sum(len(before.ids) > length for before, length in zip(whole, kept, strict=True)) if lost else 0
        answers = sum(end > limit for draft in drafts for end in draft.answers)
        if example.answer.tool_calls:
            example = replace(example, reference=self.tokenizer.spoken(example.conversation))
        line = (example_to_json(example) + "\n").encode()
        cut = Cut(rows=shortened, tokens=lost, answers=answers)
        return Rendered(rows=rows, line=line, cut=cut, answers=_num_answers(drafts) - answers)


def shorten_user_texts(tokenizer: ChatTokenizer, conversation: Conversation, excess: int) -> Conversation:
    """The conversation with `excess` tokens less in its longest user texts, which are cut at their ends to one length.

    Texts of 100, 40 and 10 tokens and an excess of 80 leave 30, 30 and 10. Without user text left, the conversation as it is.
    """
    lengths = [len(tokenizer.encode(message.content)) if message.role == "user" else 0 for message in conversation.messages]
    level = _level(lengths, excess)
    return replace(
        conversation,
        messages=tuple(
            replace(message, content=tokenizer.beginning(message.content, level)) if length > level else message
            for message, length in zip(conversation.messages, lengths, strict=True)
        ),
    )


def _num_answers(drafts: list[Draft]) -> int:
    return sum(len(draft.answers) for draft in drafts)


def _level(lengths: list[int], excess: int) -> int:
    """The greatest length to which cutting all longer ones takes `excess` away; 0 where nothing suffices."""
    fits = bisect.bisect_right(range(max(lengths) + 1), -excess, key=lambda level: -sum(max(0, length - level) for length in lengths))
    return max(0, fits - 1)

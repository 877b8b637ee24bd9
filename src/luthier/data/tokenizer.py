"""A tokenizer with its chat template: what the server renders for a prompt, and what the model must answer to end its turn."""

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from luthier.core.chat import Conversation, Message
from luthier.core.errors import LuthierError, ModelError
from luthier.data.repository import Repository, open_repository
from luthier.recipe.schema import Model

if TYPE_CHECKING:  # importing transformers takes 2 s, which a cached `prepare` need not pay
    from transformers import PreTrainedTokenizerBase

TEMPLATE_NAME = re.compile(r"[\w-]{1,100}")
"""Of a tokenizer with several: it becomes a file's name when the tokenizer is saved."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
QUESTION, ANSWER = "xQuestionx", "xAnswerx"
THOUGHT = "<think>\nxThoughtx\n</think>\n\n"


class TemplateRefused(ModelError):
    """The chat template does not take this conversation; `what` is the template's own message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnIds:
    """A prompt and its answer as the model meets them: two lists, so that no token spans both."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTokenizer:
    """Renders, encodes and decodes as the server will."""

    pretrained: "PreTrainedTokenizerBase"
    stop_ids: tuple[int, ...]
    """Generation ends on any of them: eos of tokenizer, config and generation config, and the template's end-of-turn."""
    end_of_turn: str
    """What ends an assistant's turn, up to and including the stop token: `<|im_end|>`."""
    prefix_stable: bool
    """Whether a dialogue's rendering begins with the renderings of its earlier turns, thinking included."""
    pad_id: int
    """Fills batches; what it fills is masked by position, so it may be a token that also has a meaning."""
    template_hash: str
    """sha256 of the chat template."""
    cutting_ids: frozenset[int]
    """Special tokens that are found in raw text before it is split into words."""
    longest_token: int
    """Characters of text that one token stands for, at most."""

    def render(self, conversation: Conversation, *, add_generation_prompt: bool, variables: Mapping[str, Any] = NOTHING) -> str:
        """The conversation as text, by the template, given variables beside it, in transformers' sandbox; raises TemplateRefused.

        A template is a program: it can be wrong in any way. It cannot reach outside its sandbox, but it can take for ever.
        """
        messages = [message.to_template() for message in conversation.messages]
        tools: list[Any] = [dict(tool) for tool in conversation.tools]
        try:
            text = self.pretrained.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
            )
        except Exception as error:
            raise TemplateRefused(str(error) or type(error).__name__) from error
        return str(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text; nothing is added, for the template has written BOS where it wants one."""
        ids: list[int] = self.pretrained.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_turn(self, prompt: str, answer: str) -> "TurnIds":
        """Token ids of a prompt and of the answer to it: `encode(prompt)` and `encode_after(prompt, …, answer)`, for the price of one.

        Special tokens cut text before anything else does, so what stands before the prompt's last one is encoded alike with and
        without the answer; whether the rest is, is looked at.
        """
        encoding = self.pretrained.backend_tokenizer.encode(prompt + answer, add_special_tokens=False)
        ids, spans = encoding.ids, encoding.offsets
        border = bisect_right(spans, len(prompt), key=lambda span: span[1])
        last = next((place for place in range(border - 1, -1, -1) if ids[place] in self.cutting_ids), -1)
        if last >= 0 and self.encode(prompt[spans[last][0] :]) == ids[last:border]:
            return TurnIds(prompt=ids[:border], answer=ids[border:])
        prompt_ids = self.encode(prompt)
        return TurnIds(prompt=prompt_ids, answer=self.encode_after(prompt, prompt_ids, answer))

    def encode_after(self, prompt: str, prompt_ids: list[int], text: str) -> list[int]:
        """Token ids of text that continues an encoded prompt.

        As encoding the whole gives them, where that leaves the prompt's ids alone. Where text and prompt would merge into one token,
        the text is encoded after a newline, which keeps SentencePiece from adding a space to its beginning.
        """
        whole = self.encode(prompt + text)
        if whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
        newline = self.encode("\n")
        after_newline = self.encode("\n" + text)
        return after_newline[len(newline) :] if after_newline[: len(newline)] == newline else self.encode(text)

    def beginning(self, text: str, num_tokens: int) -> str:
        """The text of the first `num_tokens` tokens of `text`, without a character of which a token is missing."""
        spans = self.pretrained.backend_tokenizer.encode(text, add_special_tokens=False).offsets
        if num_tokens >= len(spans):
            return text
        return text[: min(spans[num_tokens - 1][1], spans[num_tokens][0])] if num_tokens else ""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens included."""
        text = self.pretrained.decode([int(token) for token in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def said(self, ids: Iterable[int]) -> str:
        """The text of an answer's tokens as people are told it: without special tokens."""
        return str(self.pretrained.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """What the server feeds the model before it answers the conversation's next turn."""
        return self.encode(self.render(conversation, add_generation_prompt=True))

    def answer_text(self, prompt: str, conversation: Conversation) -> str:
        """What the model must write after `prompt`, the rendering of all but the last turn, to say the last turn: text and end-of-turn.

        As the template writes it, where that continues the prompt and keeps the text; else the message's own text:
        a template may drop the thinking of every turn, or open `<think>` in the prompt alone.
        """
        message = conversation.messages[-1]
        full = self.render(conversation, add_generation_prompt=False)
        written = full[len(prompt) :] if full.startswith(prompt) else ""
        end = self._end_of_last_stop(written)
        text = written[:end] if end else written.rstrip() + self.end_of_turn
        if any(str(call.get("function", call).get("name")) not in written for call in message.tool_calls):
            raise TemplateRefused("it leaves out the assistant's tool calls, or does not write them after its generation prompt")
        if written and _squeezed(message.content) in _squeezed(written):
            return text
        return _continued(prompt, message.content) + self.end_of_turn

    def spoken(self, conversation: Conversation) -> str:
        """The last turn as generation tells it once the model has said it: no end-of-turn, no special tokens."""
        before = Conversation(messages=conversation.messages[:-1], tools=conversation.tools)
        answer = self.answer_text(self.render(before, add_generation_prompt=True), conversation).removesuffix(self.end_of_turn)
        return self.said(self.encode(answer))

    def save(self, folder: Path) -> None:
        """Write tokenizer and template as transformers reads them, for servers and `load_tokenizer`."""
        self.pretrained.save_pretrained(folder)

    def _end_of_last_stop(self, written: str) -> int:
        """Where the last stop token of `written` ends, if nothing but white space follows it; else 0."""
        stops = [token for token in _tokens(self.pretrained, self.stop_ids) if token in written]
        end = max((written.rindex(token) + len(token) for token in stops), default=0)
        return end if not written[end:].strip() else 0


def load_tokenizer(model: Model) -> ChatTokenizer:
    """The recipe's tokenizer and chat template, from `demo`, a folder, the local cache or the hub; raises ModelError."""
    repository = open_repository(model)
    if not model.trust_remote_code:
        repository.refuse_own_code()
    try:
        return _loaded(model, repository)
    except BaseException as error:  # a stranger's tokenizer.json makes tokenizers raise plain Exceptions, and Rust's panic, which is none
        if isinstance(error, LuthierError) or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        raise repository.not_loaded(error) from error


def chat_tokenizer(pretrained: "PreTrainedTokenizerBase", eos_ids: Sequence[int] = ()) -> ChatTokenizer:
    """A transformers tokenizer with a chat template as a ChatTokenizer; `eos_ids` are those of the model's configuration."""
    if not pretrained.is_fast:
        what = "the tokenizer has no tokenizer.json, and transformers cannot make one of its files"
        raise ModelError(what, where=str(pretrained.name_or_path), change="take a base that comes with a tokenizer.json")
    template = pretrained.chat_template
    if wrong := [name for name in template if not TEMPLATE_NAME.fullmatch(name)] if isinstance(template, dict) else []:
        raise ModelError(f"a chat template is called {wrong[0]!r:.80}, which is no name", where=str(pretrained.name_or_path))
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    eos = [token for token in (pretrained.eos_token_id, *eos_ids) if token is not None]
    plain = ChatTokenizer(
        pretrained=pretrained,
        stop_ids=tuple(dict.fromkeys(eos)),
        end_of_turn="",
        prefix_stable=False,
        pad_id=pretrained.pad_token_id if pretrained.pad_token_id is not None else next(iter(eos), 0),
        template_hash=hashlib.sha256(text.encode()).hexdigest(),
        cutting_ids=frozenset(id for id, token in pretrained.added_tokens_decoder.items() if token.special and not token.normalized),
        longest_token=max(map(len, pretrained.get_vocab()), default=1),
    )
    end, stop_id = _end_of_turn(plain)
    ended = replace(plain, stop_ids=tuple(dict.fromkeys((*eos, stop_id))), end_of_turn=end)
    return replace(ended, prefix_stable=_is_prefix_stable(ended))


def fingerprint(model: Model) -> str:
    """sha256 over everything that decides how text becomes ids; of a folder from its files, without loading transformers."""
    repository = open_repository(model)
    if repository.is_folder:
        template = "" if model.chat_template == "auto" else _read_template(Path(model.chat_template))
        parts: list[Any] = [repository.tokenizer_files(), template]
    else:
        tokenizer = load_tokenizer(model)
        pretrained = tokenizer.pretrained
        parts = [tokenizer.template_hash, tokenizer.stop_ids, pretrained.special_tokens_map, pretrained.backend_tokenizer.to_str()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _loaded(model: Model, repository: Repository) -> ChatTokenizer:
    from transformers import AutoTokenizer

    pretrained = AutoTokenizer.from_pretrained(
        repository.location,
        revision=repository.revision,
        trust_remote_code=model.trust_remote_code,
        local_files_only=repository.cached_only,
    )
    if model.chat_template != "auto":
        pretrained.chat_template = _read_template(Path(model.chat_template))
    if not pretrained.chat_template:
        change = "set model.chat_template to a file with the model's Jinja chat template, or take the instruct version of the model"
        raise ModelError("the tokenizer has no chat template", where=repository.location, change=change)
    return chat_tokenizer(pretrained, repository.eos_ids())


def _end_of_turn(tokenizer: ChatTokenizer) -> tuple[str, int]:
    """What the template writes after an answer, up to the first special token, and that token's id.

    A template that ends a turn without a special token (Alpaca's `### Response:`) has none to stop on: then answers are ended
    with the tokenizer's eos, which the model learns to write though the template never shows it.
    """
    dialogue = _dialogue(QUESTION, ANSWER)
    try:
        text = tokenizer.render(dialogue, add_generation_prompt=False)
    except TemplateRefused as error:
        raise ModelError(f"the chat template cannot render one question and its answer: {error.what}") from error
    if ANSWER not in text:
        change = "set model.chat_template to a file with a template that writes it"
        raise ModelError("the chat template leaves out what the assistant says", change=change)
    after = text[text.rindex(ANSWER) + len(ANSWER) :]
    pretrained = tokenizer.pretrained
    special = {token.content: id for id, token in pretrained.added_tokens_decoder.items() if token.special}
    special |= dict(zip(_tokens(pretrained, tokenizer.stop_ids), tokenizer.stop_ids, strict=True))
    found = [(after.index(token), token) for token in special if token and token in after]
    if found:
        start, token = min(found, key=lambda item: (item[0], -len(item[1])))
        return after[: start + len(token)], special[token]
    if pretrained.eos_token_id is None:
        change = "use a template that writes one, or a tokenizer with an eos token"
        raise ModelError("the chat template ends an assistant's turn with no special token, and the tokenizer has no eos", change=change)
    return str(pretrained.eos_token), int(pretrained.eos_token_id)


def _is_prefix_stable(tokenizer: ChatTokenizer) -> bool:
    """Try a plain and a thinking answer: does the text up to the answer's end stand unchanged once the user goes on?"""
    for answer in (ANSWER, THOUGHT + ANSWER):
        dialogue = _dialogue(QUESTION, answer)
        prompt = tokenizer.render(Conversation(messages=dialogue.messages[:1]), add_generation_prompt=True)
        turn = prompt + tokenizer.answer_text(prompt, dialogue)
        if not tokenizer.render(_dialogue(QUESTION, answer, QUESTION), add_generation_prompt=True).startswith(turn):
            return False
    return True


def _dialogue(*texts: str) -> Conversation:
    """User and assistant by turns."""
    return Conversation(
        messages=tuple(Message(role="assistant" if index % 2 else "user", content=text) for index, text in enumerate(texts))
    )


def _tokens(pretrained: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    return [str(token) for token in pretrained.convert_ids_to_tokens(list(ids))]


def _squeezed(text: str) -> str:
    """Without white space, which templates strip and add."""
    return "".join(text.split())


def _continued(prompt: str, content: str) -> str:
    """The message's text as the continuation of a prompt that may end in an opened `<think>`."""
    if not prompt.rstrip().endswith("<think>"):
        return content
    if "</think>" in content:
        return content.removeprefix("<think>").lstrip("\n")
    return "\n</think>\n\n" + content  # what Qwen3-2507's own template writes where there is no thinking


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ModelError(f"model.chat_template cannot be read: {reason}", where=str(path)) from error

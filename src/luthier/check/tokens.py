"""What the rows of a recipe train on, against what its conversations say and what a server will render (traps 6, 7, 8, 10, 12, 13, 28)."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from luthier.check.outcome import Outcome, beside, judged
from luthier.core.chat import Conversation
from luthier.data.mask import without_thinking
from luthier.data.rows import Example
from luthier.data.store import Prepared, TokenRow
from luthier.data.tokenizer import ChatTokenizer, chat_tokenizer
from luthier.recipe.schema import Data
from luthier.train.batch import collate

CONVERSATIONS = 100
"""Looked at, evenly spaced over the training split."""
EMPTY_THOUGHT = "<think></think>"
"""What a template may write before an answer without thinking, white space aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A conversation and its token rows; `whole` where `max_length` has cut none of them."""

    example: Example
    rows: tuple[TokenRow, ...]
    whole: bool

    @property
    def turns(self) -> list[int]:
        """Places of the assistant's."""
        return [place for place, message in enumerate(self.example.conversation.messages) if message.role == "assistant"]

    def before(self, place: int) -> Conversation:
        """What stands before a turn."""
        return Conversation(messages=self.example.conversation.messages[:place], tools=self.example.conversation.tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that these checks see."""

    tokenizer: ChatTokenizer
    data: Data
    prepared: Prepared
    sample: tuple[Sampled, ...]

    @property
    def whole(self) -> list[Sampled]:
        """What was not cut."""
        return [sampled for sampled in self.sample if sampled.whole]

    @property
    def answers_only(self) -> bool:
        """Whether what is trained on are answers, whole."""
        return self.data.train_on in ("assistant", "last_assistant") and self.data.thinking != "mask"


def case_of(tokenizer: ChatTokenizer, data: Data, prepared: Prepared) -> Case:
    """The case of prepared rows."""
    rows, examples = prepared.rows("train"), prepared.examples("train")
    longest = prepared.summary.max_length
    sample = []
    for place in np.unique(np.linspace(0, len(examples) - 1, CONVERSATIONS).round().astype(int)) if examples else ():
        own = [rows[int(number)] for number in np.flatnonzero(rows.example_index == place)]
        sample.append(
            Sampled(example=examples[place], rows=tuple(own), whole=all(len(row) < longest or data.max_length == "fit" for row in own))
        )
    return Case(tokenizer=tokenizer, data=data, prepared=prepared, sample=tuple(sample))


def served_ids(case: Case) -> Outcome:
    """Trap 6: a server's prompt is not what the row begins with; BOS twice."""
    fault, bos = "the server's ids differ from those trained on, or BOS stands twice", case.tokenizer.pretrained.bos_token_id
    wrong = []
    for sampled in case.whole:
        ids, prompt = sampled.rows[-1].ids.tolist(), case.tokenizer.prompt_ids(sampled.example.prompt)
        if ids[: len(prompt)] != prompt:
            apart = next((place for place, (one, other) in enumerate(zip(ids, prompt, strict=False)) if one != other), len(ids))
            wrong.append(f"{sampled.example.origin}: from token {apart} on")
        elif ids[:2] == [bos, bos]:
            wrong.append(f"{sampled.example.origin}: begins with two BOS")
    compared = f"prompts of {len(case.whole)} conversations as a server renders them, with their rows"
    return judged(
        fault, wrong, compared, "set model.chat_template to a template whose generation prompt is how it writes an answer's beginning"
    )


def ends_of_turns(case: Case) -> Outcome:
    """Trap 7: the token that ends a turn is not trained, or padding is."""
    fault = "the end of a turn is never trained, so answers would not stop"
    if not case.answers_only:
        return beside(fault, "data.train_on or data.thinking has other tokens than whole answers trained")
    stops = set(case.tokenizer.stop_ids)
    wrong = [
        f"{sampled.example.origin}: an answer ends with {case.tokenizer.decode(run[-1:])!r}"
        for sampled in case.whole
        for row in sampled.rows
        for run in runs(row)
        if run[-1] not in stops
    ]
    rows = [row for sampled in case.sample for row in sampled.rows][:8]
    padded = collate(rows, range(len(rows)), torch.device("cpu"), pad_id=case.tokenizer.stop_ids[0])
    targets = sum(int(row.supervised[1:].sum()) for row in rows)
    if padded.num_targets != targets:
        wrong.append(f"{padded.num_targets} targets of {targets} are left where rows are padded with the stop token")
    compared = f"last tokens of the answers of {len(case.whole)} conversations with the stop ids {sorted(stops)}"
    return judged(fault, wrong, compared, "take the tokenizer and template of the base's instruct version, or set model.chat_template")


def targets_left(case: Case) -> Outcome:
    """Trap 8: rows of which `max_length` left nothing to train on."""
    rows, train = case.prepared.rows("train"), case.prepared.summary.splits["train"]
    none = np.flatnonzero(rows.num_supervised == 0)
    lost, cut = train.over_length, train.cut
    compared = (
        f"{len(rows)} rows, {train.supervised_tokens:,} of {train.tokens:,} tokens trained on; max_length took {lost.examples} "
        f"conversations ({lost.answers} answers) and cut {cut.rows} rows ({cut.answers} answers)"
    )
    wrong = [f"row {number} has no target" for number in none]
    return judged("rows have nothing to train on: loss 0 and no gradient", wrong, compared, "raise data.max_length")


def trained_text(case: Case) -> Outcome:
    """Trap 10: what is trained on is not the assistant's text and its end."""
    fault = "the tokens that are trained on are not the assistant's answer"
    if not case.answers_only:
        return beside(fault, "data.train_on or data.thinking has other tokens than whole answers trained")
    wrong, compared = [], 0
    for sampled in case.whole:
        messages = [sampled.example.conversation.messages[place] for place in sampled.turns]
        wanted = messages[-1:] if case.data.train_on == "last_assistant" else messages
        found = [case.tokenizer.decode(run) for row in sampled.rows for run in runs(row)]
        if any(message.tool_calls for message in wanted):
            continue
        compared += 1
        for message, text in zip(wanted, found, strict=False):
            if not _says(text, message.content, case.tokenizer.end_of_turn):
                wrong.append(f"{sampled.example.origin}: {text[-40:]!r} for {message.content[-40:]!r}")
        if len(found) != len(wanted):
            wrong.append(f"{sampled.example.origin}: {len(found)} answers are trained on, of {len(wanted)}")
    if not compared:
        return beside(fault, "no conversation is whole and without tool calls")
    return judged(fault, wrong, f"decoded targets of {compared} conversations with their answers", "see `luthier inspect`, and report it")


def every_turn(case: Case) -> Outcome:
    """Trap 12: an earlier turn stands in a row otherwise than a server would have shown it."""
    fault = "an earlier turn is trained after another text than a server would send"
    dialogues = [sampled for sampled in case.whole if len(sampled.turns) > 1]
    if case.data.train_on != "assistant" or not dialogues:
        return beside(fault, "one answer of each conversation is trained on")
    wrong = []
    for sampled in dialogues:
        for place in sampled.turns:
            prompt = case.tokenizer.prompt_ids(sampled.before(place))
            after = [row for row in sampled.rows if row.ids[: len(prompt)].tolist() == prompt]
            if not any(row.supervised[len(prompt) :][:1].any() or case.data.thinking == "mask" for row in after):
                wrong.append(f"{sampled.example.origin}: turn {place}")
    stable = "is" if case.tokenizer.prefix_stable else "is not"
    compared = f"prompts of every answer of {len(dialogues)} dialogues, with the rows; the template {stable} prefix-stable"
    return judged(fault, wrong, compared, "see `luthier inspect`, and report it")


def saved_template(case: Case) -> Outcome:
    """Trap 13: tokenizer and template that are saved with the adapter render otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        case.tokenizer.save(Path(folder))
        again = chat_tokenizer(AutoTokenizer.from_pretrained(folder), case.tokenizer.stop_ids)
    prompts = [sampled.example.prompt for sampled in case.sample]
    wrong = [
        sampled.example.origin
        for sampled, prompt in zip(case.sample, prompts, strict=True)
        if again.prompt_ids(prompt) != case.tokenizer.prompt_ids(prompt)
    ]
    if again.template_hash != case.tokenizer.template_hash:
        wrong.insert(0, "the template's hash")
    compared = f"ids of {len(prompts)} prompts by the tokenizer as it is, and saved as it lies beside an adapter and loaded again"
    return judged("a server that loads the saved tokenizer renders another text", wrong, compared, "set model.chat_template to a file")


def held_out_rows(case: Case) -> Outcome:
    """Trap 28: rows that are to measure learning were learned."""
    fault, overlap = "validation or test rows stand in the training rows", case.prepared.summary.overlap
    if not overlap:
        return beside(fault, "no rows are held out")
    train = {row.ids.tobytes() for row in case.prepared.rows("train")}
    wrong = [
        f"{found.exact} prompts of {split} also stand in train, such as {found.examples[0]}"
        for split, found in overlap.items()
        if found.exact
    ]
    for split in overlap:
        twins = sum(row.ids.tobytes() in train for row in case.prepared.rows(split))
        wrong += [f"{twins} whole rows of {split} also stand in train"] if twins else []
    near = ", ".join(f"{found.near} of {split}" for split, found in overlap.items())
    compared = f"every held-out prompt and row with those of train; nearly alike: {near}"
    return judged(fault, wrong, compared, "set data.deduplicate: exact, or data.keep_together to the field that tells rows of one kind")


def runs(row: TokenRow) -> Iterator[list[int]]:
    """The ids of each run of supervised tokens."""
    for trained, run in groupby(range(len(row)), key=lambda place: bool(row.supervised[place])):
        if trained:
            yield [int(row.ids[place]) for place in run]


CHECKS = (served_ids, ends_of_turns, targets_left, trained_text, every_turn, saved_template, held_out_rows)


def _says(text: str, content: str, end: str) -> bool:
    """Whether tokens decode to an answer and its end, but for white space and a thought that the template adds, opens or leaves out."""
    found, wanted = ("".join(part.split()) for part in (text, content + end))
    bare = "".join((without_thinking(content) + end).split())
    return found.removeprefix(EMPTY_THOUGHT) in (wanted, bare, wanted.removeprefix("<think>")) or found == f"</think>{bare}"

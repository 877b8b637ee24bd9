"""The rows that are trained: four made kinds, and real ones. The same rows for the same number, seed and Python version."""

import json
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from bench.protocol import LONGEST, Files, Row, write_rows
from bench.shapes import BENCH, corpus
from luthier import flow
from luthier.core.errors import UsageError

SEED = 7
SLICED_TEXTS = 30
"""Files of the corpus that rows are cut out of."""
LABELS = ("billing", "refund request", "technical issue", "other", "spam")

Dialogue = list[dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A workload in words, and the chat template that its rows are rendered by."""

    told: str
    template: str = "chatml.jinja"


KINDS = {
    "i": Kind(told="agents' instructions, five system prompts of 115–195 tokens"),
    "ii": Kind(told="dialogues of 3–6 turns, one row per assistant turn", template="thinking.jinja"),
    "iii": Kind(told="classification, one long prompt, short answers"),
    "iv": Kind(told="as i, every row with a system prompt of its own"),
    "v": Kind(told="real rows: Debian packages to their sections"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A workload's rows, and the files in which the workers find them."""

    rows: Sequence[Row]
    whole: Sequence[Row]
    files: Files


def make_rows(name: str, num_rows: int, model: Path, recipe: Path, work: Path) -> Rows:
    """The workload's rows, `num_rows` answers in all, written to files. `recipe` is read for the real rows only."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(model)
    dialogues = _real(recipe, num_rows, model, work) if name == "v" else _made(name, num_rows, tokenizer)
    template = BENCH / KINDS[name].template
    rows = [_row(turns, tokenizer, template) for dialogue in dialogues for turns in turns_of(dialogue)]
    whole = [_whole(dialogue, tokenizer) for dialogue in dialogues]
    folder = work / "rows" / f"{name}-{num_rows}-{model.name}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"{kind}.jsonl" for kind in ("dialogues", "rows", "whole")}
    paths["dialogues"].write_text("".join(json.dumps({"messages": dialogue}) + "\n" for dialogue in dialogues), encoding="utf-8")
    write_rows(paths["rows"], rows)
    write_rows(paths["whole"], whole)
    files = Files(model=str(model), template=str(template), **{kind: str(path) for kind, path in paths.items()})
    return Rows(rows=rows, whole=whole, files=files)


def turns_of(dialogue: Dialogue) -> list[Dialogue]:
    """The dialogue up to and including each of its answers."""
    return [dialogue[: place + 1] for place, message in enumerate(dialogue) if message["role"] == "assistant"]


class _Texts:
    """Slices of the corpus with lengths drawn from log-normal distributions."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerFast) -> None:
        self.draw = random.Random(f"{SEED}/{name}")
        self._tokenizer = tokenizer
        self._ids: list[int] = tokenizer("\n".join(corpus()[:SLICED_TEXTS]), add_special_tokens=False)["input_ids"]

    def of(self, num_tokens: int) -> str:
        """About so many tokens of text, without white space at its ends."""
        start = self.draw.randrange(0, len(self._ids) - num_tokens)
        text = str(self._tokenizer.decode(self._ids[start : start + num_tokens], skip_special_tokens=True))
        return text.strip() or "ok"

    def around(self, median: float, sigma: float, low: int, high: int) -> str:
        """Text whose length is log-normal around the median, within bounds."""
        return self.of(int(min(high, max(low, math.exp(self.draw.gauss(math.log(median), sigma))))))


def _made(name: str, num_rows: int, tokenizer: PreTrainedTokenizerFast) -> list[Dialogue]:
    """Dialogues with `num_rows` answers in all; one that is longer than LONGEST tokens is drawn again."""
    texts = _Texts(name, tokenizer)
    draw = MAKERS[name](texts)
    dialogues: list[Dialogue] = []
    missing = num_rows
    while missing:
        dialogue = draw()
        answers = [place for place, message in enumerate(dialogue) if message["role"] == "assistant"]
        dialogue = dialogue[: answers[:missing][-1] + 1]
        if max(len(_row(dialogue, tokenizer, BENCH / name_).ids) for name_ in ("chatml.jinja", "thinking.jinja")) <= LONGEST:
            dialogues.append(dialogue)
            missing -= len(answers[:missing])
    return dialogues


def _agents(texts: _Texts) -> Callable[[], Dialogue]:
    systems = [texts.of(length) for length in (115, 135, 150, 170, 195)]

    def draw() -> Dialogue:
        return _instruction(texts, texts.draw.choices(systems, weights=[5, 4, 3, 2, 2])[0])

    return draw


def _strangers(texts: _Texts) -> Callable[[], Dialogue]:
    def draw() -> Dialogue:
        return _instruction(texts, texts.of(texts.draw.choices((115, 135, 150, 170, 195), weights=[5, 4, 3, 2, 2])[0]))

    return draw


def _instruction(texts: _Texts, system: str) -> Dialogue:
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": texts.around(22, 0.9, 4, 400)},
        {"role": "assistant", "content": texts.around(105, 0.8, 8, 760)},
    ]


def _dialogues(texts: _Texts) -> Callable[[], Dialogue]:
    systems = [texts.of(length) for length in (40, 60, 60, 80, 100)]

    def draw() -> Dialogue:
        dialogue = [{"role": "system", "content": texts.draw.choice(systems)}]
        for _ in range(texts.draw.randint(3, 6)):
            dialogue.append({"role": "user", "content": texts.around(30, 0.6, 5, 120)})
            dialogue.append({"role": "assistant", "content": texts.around(60, 0.6, 8, 180)})
        return dialogue

    return draw


def _classification(texts: _Texts) -> Callable[[], Dialogue]:
    system = texts.of(170)

    def draw() -> Dialogue:
        return [
            {"role": "system", "content": system},
            {"role": "user", "content": texts.around(60, 0.3, 20, 150)},
            {"role": "assistant", "content": texts.draw.choice(LABELS)},
        ]

    return draw


MAKERS: dict[str, Callable[[_Texts], Callable[[], Dialogue]]] = {
    "i": _agents,
    "ii": _dialogues,
    "iii": _classification,
    "iv": _strangers,
}


def _real(recipe: Path, num_rows: int, model: Path, work: Path) -> list[Dialogue]:
    """Training rows of a recipe as Luthier prepares them (deduplicated, split, shortened), drawn by a seed."""
    os.environ["LUTHIER_RUNS"] = str(work / "runs")
    loaded = flow.load(recipe, [f"model.base={model}"])
    prepared = flow.prepare(loaded.recipe)
    examples = prepared.examples("train")
    if len(examples) < num_rows:
        raise UsageError(f"{recipe} has {len(examples)} training rows, --rows wants {num_rows}", change="ask for fewer")
    chosen = random.Random(f"{SEED}/v").sample(examples, num_rows)
    return [[{"role": item.role, "content": item.content} for item in example.conversation.messages] for example in chosen]


def _row(messages: Dialogue, tokenizer: PreTrainedTokenizerFast, template: Path) -> Row:
    """The messages as tokens, the last answer supervised, by transformers alone."""
    text = template.read_text(encoding="utf-8")
    prompt = tokenizer.apply_chat_template(messages[:-1], chat_template=text, add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = tokenizer.apply_chat_template(messages, chat_template=text, return_dict=True)["input_ids"]
    if ids[: len(prompt)] != prompt:
        raise ValueError("the template does not render the prompt as the beginning of the whole")
    return Row(messages=messages, ids=ids, supervised=[0] * len(prompt) + [1] * (len(ids) - len(prompt)))


def _whole(dialogue: Dialogue, tokenizer: PreTrainedTokenizerFast) -> Row:
    text = (BENCH / "chatml.jinja").read_text(encoding="utf-8")
    found = tokenizer.apply_chat_template(dialogue, chat_template=text, return_dict=True, return_assistant_tokens_mask=True)
    return Row(messages=dialogue, ids=found["input_ids"], supervised=found["assistant_masks"])

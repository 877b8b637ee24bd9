"""Whether what is trained on can be learned, and ends: four answers of the recipe's rows by heart, and then a stop token (trap 7).

What learns is a slice of the model as in `numbers`, a layer of each kind, by the trainer's own step. Weights are random, so it says nothing
of the model; but rows whose end is not trained, or a step that trains nothing, show in seconds.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW

from luthier.check.numbers import CPU, TooLargeToTry, Trial, slice_of
from luthier.check.outcome import Outcome, beside, judged
from luthier.check.tokens import Case, runs
from luthier.core.errors import RecipeError
from luthier.data.store import TokenRow
from luthier.model.place import trained_of
from luthier.recipe.schema import Recipe
from luthier.train.optim import set_rate
from luthier.train.precision import Precision
from luthier.train.slices import kinds_of, text_config
from luthier.train.step import train_step

ROWS = 4
MOST_TOKENS, FEWEST_TOKENS = 48, 12
"""Of each row: the end of an answer, and what stands before it."""
OPERATIONS = 3e11
"""Of ten steps, which is what most need: a few seconds on two cores."""
STEPS, SECONDS = 200, 15.0
"""At most. As measured, 3 to 22 steps learn at the widths of real models (docs/notes/check.md)."""
RATE = 0.1
"""Over the root of the width, at first; halved each time that the loss is well above the lowest so far."""
ROSE = 1.5
FELL = 0.9
"""Of the loss at the beginning: above it nothing was learned."""
FAULT = "answers are not learned by heart, or do not stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The end of an answer after some of what stands before it, as tokens of the slice's small vocabulary."""

    origin: str
    row: TokenRow
    stops: bool
    """Whether a stop token is its last target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """How four answers were learned: steps, the first and last loss, targets that are the likeliest token, and what follows each row."""

    steps: int
    losses: tuple[float, float]
    right: int
    targets: int
    following: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether every answer would be written to its last target."""
        return self.right == self.targets


def by_heart(case: Case, recipe: Recipe, config: Mapping[str, Any]) -> Outcome:
    """Trap 7, its last part: overfit four rows, and generation stops."""
    if not case.answers_only:
        return beside(FAULT, "data.train_on or data.thinking has other tokens than whole answers trained")
    if len(case.whole) < ROWS:
        return beside(FAULT, f"fewer than {ROWS} conversations are whole")
    whole = text_config(config)
    kinds = kinds_of(whole)
    try:
        layers = tuple(sorted({kinds.index(kind) for kind in kinds}))
        small, parameters = slice_of(whole, layers, num_bytes=20 if recipe.lora == "none" else 6)  # moments, too, where all are trained
        most = int(np.clip(OPERATIONS / (10 * 6 * parameters * ROWS), FEWEST_TOKENS, MOST_TOKENS))
        answers, stops = answers_of(case, most)
        small.vocab_size = max(64, 1 + max(int(answer.row.ids.max()) for answer in answers), 1 + max(stops))
        trial = Trial(recipe=recipe, config=small, rows=tuple(answer.row for answer in answers), learns=True)
        model, _ = trial.build(pack=False)
    except (TooLargeToTry, RecipeError) as error:  # a recipe may name layers that the slice has not
        return beside(FAULT, str(error))
    return _told(answers, stops, learn(trial, model))


def answers_of(case: Case, most: int) -> tuple[list[Answer], frozenset[int]]:
    """Four conversations' first answers with at most so many tokens, and the stop ids, all numbered anew.

    Each begins with a token of its own: what is left of the text before may be the same for all of them.
    """
    chosen = [case.whole[place] for place in np.linspace(0, len(case.whole) - 1, ROWS).round().astype(int)]
    parts = []
    for sampled in chosen:
        row = sampled.rows[0]
        end = int(np.argmax(row.supervised)) + len(next(runs(row)))
        start = max(0, end - most + 1)
        parts.append((row.ids[start:end], row.supervised[start:end]))
    known, numbers = np.unique(np.concatenate([*(ids for ids, _ in parts), case.tokenizer.stop_ids]), return_inverse=True)
    borders = np.cumsum([len(ids) for ids, _ in parts])
    renumbered = np.split(numbers, borders)
    stops = frozenset(renumbered.pop().tolist())
    answers = []
    for place, (sampled, ids, (_, supervised)) in enumerate(zip(chosen, renumbered, parts, strict=True)):
        row = TokenRow(ids=np.append(len(known) + place, ids).astype(np.int32), supervised=np.append(False, supervised))
        answers.append(Answer(origin=sampled.example.origin, row=row, stops=int(ids[-1]) in stops))
    return answers, stops


def learn(trial: Trial, model: nn.Module) -> Lesson:
    """Steps over all rows at once, until each target is the likeliest token after those before it, or there is no more time."""
    rate = RATE / trial.config.hidden_size**0.5
    optimizer = AdamW(trained_of(model).values(), lr=rate, weight_decay=0.0)
    batches, precision = trial.padded(len(trial.rows)), Precision.of(torch.float32, CPU)
    losses: list[float] = []
    end = time.monotonic() + SECONDS
    while True:
        seeds = (trial.recipe.seed, len(losses) + 1)
        losses.append(train_step(model, optimizer, batches, precision=precision, max_norm=1.0, seeds=seeds).loss)
        rate = rate / 2 if losses[-1] > ROSE * min(losses) else rate
        set_rate(optimizer, rate)
        right, following = _likeliest(model, trial.rows)
        targets = sum(int(row.supervised[1:].sum()) for row in trial.rows)
        if right == targets or len(losses) == STEPS or time.monotonic() > end:
            return Lesson(steps=len(losses), losses=(losses[0], losses[-1]), right=right, targets=targets, following=following)


@torch.no_grad()
def _likeliest(model: nn.Module, rows: Sequence[TokenRow]) -> tuple[int, tuple[int, ...]]:
    """Targets that are the likeliest token in their place, and the likeliest after each row."""
    model.eval()
    right, following = 0, []
    for row in rows:
        ids_T = torch.from_numpy(row.ids.astype(np.int64))
        best_T = model(input_ids=ids_T[None]).logits[0].argmax(-1)
        right += int((best_T[:-1] == ids_T[1:])[torch.from_numpy(row.supervised[1:])].sum())
        following.append(int(best_T[-1]))
    model.train()
    return right, tuple(following)


def _told(answers: Sequence[Answer], stops: frozenset[int], lesson: Lesson) -> Outcome:
    first, last = lesson.losses
    told = f"{lesson.right} of {lesson.targets} tokens of {ROWS} answers in {lesson.steps} steps of a slice, loss {first:.2f} to {last:.2f}"
    if lesson.whole:
        endless = [
            f"{answer.origin}: learned to its end, and goes on"
            for answer, following in zip(answers, lesson.following, strict=True)
            if not answer.stops and following not in stops
        ]
        change = "take the tokenizer and template of the base's instruct version, or set model.chat_template"
        return judged(FAULT, endless, told, change)
    if not last < FELL * first:
        return judged(FAULT, ["the loss does not fall"], told, "look at lora.target_modules; else report it")
    return beside(FAULT, f"it takes longer than there is time for: {told}")

"""Answers that a run asks of the model it trains: by which `checkpoints.best_by` chooses at each validation, and from which `rl` learns.

`scoring.py` says how long they take, `caches.py` how much memory.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from luthier.plan.setup import Layout
from luthier.recipe.rl import REWARD
from luthier.recipe.schema import Recipe
from luthier.runs.summary import DataSummary
from luthier.runs.workload import Extent, Survey

BATCH_TOKENS = 16_384
"""Prompts and answers that are written at once: 2.4 GB of cache for Qwen3-8B (36 layers · 8 heads · 128 · 2 · 2 bytes a token)."""
SLOTS = 64
"""Rows that are written at once, where they are short."""
SLOT_ROUND = 64
"""Tokens by which a row's slot grows."""
CHUNK = 512
"""Tokens of prompts that are read in one pass."""
ROWS_AT_A_TIME = 128
"""Handed to the completer between two signs of life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a task asks at each validation, or `rl` at a step."""

    rows: int
    prompt_tokens: float
    shared_tokens: float
    """Of a prompt's, those that others begin with, too: read once for all."""
    answer_tokens: float
    """Of the data's own answers, on average."""
    most_tokens: int
    """That an answer may have."""
    longest: int
    """Tokens of the longest prompt with its answer, at most."""
    drawn: bool = False
    """By chance; else each token is the likeliest."""

    def rows_of(self, layout: Layout) -> int:
        """Of one device: replicas that each have the whole model share them."""
        return math.ceil(self.rows / (layout.data if layout.each_whole else 1))


def rows_at_once(length: float) -> int:
    """Rows of that many tokens that are written side by side: 45 of 364."""
    return max(1, min(SLOTS, int(BATCH_TOKENS / length)))


def asked_here(recipe: Recipe, survey: Survey) -> tuple[Asked, ...]:
    """What is answered in the process that trains; what `rl` learns from may be a server's."""
    learned = asked_to_learn(recipe, "stated", survey)
    by_server = recipe.rl != "none" and recipe.rl.by_server
    found = (asked_for_the_best(recipe, "stated", survey), "nothing" if by_server else learned)
    return tuple(asked for asked in found if asked != "nothing")


def asked_for_the_best(recipe: Recipe, data: DataSummary | Literal["stated"], survey: Survey) -> Asked | Literal["nothing"]:
    """The rows that decide which checkpoint is best; nothing where the loss does, or nothing is validated."""
    by = recipe.best_by
    surveyed = sum(extent.rows for extent in survey.validation)
    if by == "loss" or not surveyed:
        return "nothing"
    limit: int | Literal["all"] = "all"
    if recipe.rl != "none" and by == REWARD:
        most = recipe.rl.max_new_tokens
    else:
        task = next(task for task in recipe.evaluation.tasks if task.name == by.partition(".")[0])
        limit, most = task.limit, task.max_new_tokens
    sums = (sum(found) / surveyed for found in zip(*((one.tokens, one.places, one.supervised) for one in survey.validation), strict=True))
    tokens, places, answer = sums
    rows = round(surveyed / survey.validation_share)
    if data != "stated" and (split := data.splits.get("validation")) and split.answers:
        rows, answer = split.examples, split.supervised_tokens / split.answers
    limited = rows if limit == "all" else min(rows, limit)
    prompt = max(0.0, tokens - answer)
    return Asked(
        rows=limited,
        prompt_tokens=prompt,
        shared_tokens=min(prompt, max(0.0, tokens - places)),
        answer_tokens=answer,
        most_tokens=most,
        longest=_longest((*survey.validation, *(survey.heaviest_validation or survey.heaviest))) + most,
    )


def asked_to_learn(recipe: Recipe, data: DataSummary | Literal["stated"], survey: Survey) -> Asked | Literal["nothing"]:
    """The answers that are drawn for a step of a recipe with `rl`: a group's prompt is read once."""
    if recipe.rl == "none":
        return "nothing"
    rows, most = recipe.training.global_batch_size, recipe.rl.max_new_tokens
    prompt = max(0.0, survey.mean("tokens") / survey.mean("rows") - most)
    answer = float(most)
    if data != "stated" and (split := data.splits.get("train")) and split.answers:
        answer = min(answer, split.supervised_tokens / split.answers)
    return Asked(
        rows=rows,
        prompt_tokens=prompt,
        shared_tokens=prompt * (1 - 1 / recipe.rl.group_size),
        answer_tokens=answer,
        most_tokens=most,
        longest=_longest((*survey.heaviest, *(extent for step in survey.steps for extent in step))),  # its rows have their answers
        drawn=True,
    )


def _longest(extents: Iterable[Extent]) -> int:
    return max(extent.longest for extent in extents)

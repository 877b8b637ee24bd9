"""How long answers take in the middle of a run: those by which `checkpoints.best_by` chooses, at each validation; those `rl` learns from.

Answers are written greedily, as many at once as there are slots; a row that ends makes room for the next, so that of a pass's time

    layers · CALL_SECONDS + max(bytes of weights and caches / bandwidth, rows · 2N / rate)

there is rows · answer / slots, and at the end, where no row is left to come, once more the longest answer less the mean. Before it stand
the prompts, 2N a token and CHUNK in a pass, of which those that rows share are read once. Qwen3-0.6B (28 layers) on an H100, 100 rows with
prompts of 300 tokens and answers of 50, which may have 64: 45 slots, 100 · 50 / 45 + 14 = 125 passes that write and 59 that read, of 28 ms
each, 5.2 s, and a tenth of a second for all else. How long answers are before the model has learned to end them is a guess.
"""

import math
from dataclasses import dataclass
from typing import Literal

from luthier.plan.layout import Chosen, Task
from luthier.plan.serving import serving_needs
from luthier.plan.setup import Setup
from luthier.plan.shape import ModelShape
from luthier.plan.speed import NOTHING, Range, Rate, Writing
from luthier.recipe.rl import REWARD
from luthier.recipe.schema import Recipe
from luthier.runs.summary import DataSummary
from luthier.runs.workload import Survey

BATCH_TOKENS = 16_384
"""Prompts and answers that are written at once: 2.3 GB of cache for Qwen3-8B (36 layers · 8 heads · 128 · 2 · 2 bytes a token)."""
SLOTS = 64
"""Rows that are written at once, where they are short."""
CHUNK = 512
"""Tokens of prompts that are read in one pass."""
ROWS_AT_A_TIME = 128
"""Handed to the completer between two signs of life."""
CALL_SECONDS = 1e-3
"""Of one layer with its adapters for one token of a batch, whatever its size: Python and small operations. 1.1 ms with 4, 8 and 24 layers
of 192 and 256 (2026-11-29, Xeon, one thread, torch 2.13, transformers 5.23), and with the engine's continuous batches what four points
measured agree with (docs/notes/evaluate.md); the same is taken for a GPU, which waits for Python here."""
LONGER = 2.0
"""The longest answer of all, in answers of the data; at least 1, at most what the task allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a task asks at each validation."""

    rows: int
    prompt_tokens: float
    shared_tokens: float
    """Of a prompt's, those that others begin with, too: read once for all."""
    answer_tokens: float
    """Of the data's own answers, on average."""
    most_tokens: int
    """That an answer may have."""


def writing(task: Task, data: DataSummary | Literal["stated"], chosen: Chosen, rate: Rate) -> Writing:
    """How long the answers of a run take that are written while it trains."""

    def seconds(asked: Asked | Literal["nothing"]) -> Range:
        return NOTHING if asked == "nothing" else scoring_seconds(task.shape, chosen.setup, asked, rate, task.place.device.bandwidth)

    recipe, survey = task.recipe, chosen.survey
    updates = 1 if recipe.rl == "none" else recipe.rl.updates
    drawn = seconds(asked_to_learn(recipe, data, survey)).times(1 / updates)
    return Writing(validation=seconds(asked_for_the_best(recipe, data, survey)), step=drawn)


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
    shared = min(prompt, max(0.0, tokens - places))
    return Asked(rows=limited, prompt_tokens=prompt, shared_tokens=shared, answer_tokens=answer, most_tokens=most)


def asked_to_learn(recipe: Recipe, data: DataSummary | Literal["stated"], survey: Survey) -> Asked | Literal["nothing"]:
    """The answers that are drawn for a step of a recipe with `rl`: a group's prompt is read once."""
    if recipe.rl == "none":
        return "nothing"
    rows, most = recipe.training.global_batch_size, recipe.rl.max_new_tokens
    prompt = max(0.0, survey.mean("tokens") / survey.mean("rows") - most)
    answer = float(most)
    if data != "stated" and (split := data.splits.get("train")) and split.answers:
        answer = min(answer, split.supervised_tokens / split.answers)
    shared = prompt * (1 - 1 / recipe.rl.group_size)
    return Asked(rows=rows, prompt_tokens=prompt, shared_tokens=shared, answer_tokens=answer, most_tokens=most)


def scoring_seconds(shape: ModelShape, setup: Setup, asked: Asked, rate: Rate, bandwidth: float) -> Range:
    """Of one validation's answers, which replicas share; a bandwidth of 0 is not known, and left out."""
    rows = math.ceil(asked.rows / (setup.layout.data if setup.layout.each_whole else 1))
    each = asked.prompt_tokens + asked.most_tokens
    slots = min(rows, SLOTS, max(1, int(BATCH_TOKENS / each)))
    per_token = 2.0 * (shape.multiplied_parameters + shape.hidden * shape.vocabulary)
    needs = serving_needs(shape, setup.dtype, setup.quantization, max(1, round(each)), slots)
    pass_reads = needs.read_bytes / bandwidth if bandwidth else 0.0
    calls = math.ceil(rows / ROWS_AT_A_TIME)
    prompts = rows * (asked.prompt_tokens - asked.shared_tokens) + calls * asked.shared_tokens

    def seconds(mean: float, longest: float, flops: float) -> float:
        """With answers as long as that, on average and at most."""
        mean, longest = min(mean, asked.most_tokens), min(longest, asked.most_tokens)
        passes = rows * mean / slots + calls * (longest - mean)
        called = (passes + prompts / CHUNK) * shape.num_layers * CALL_SECONDS
        written = max(passes * pass_reads, rows * mean * per_token / flops)
        return called + written + prompts * 2.0 * shape.multiplied_parameters / flops

    return Range(
        low=seconds(asked.answer_tokens, asked.answer_tokens, rate.flops.high),
        mid=seconds(asked.answer_tokens, LONGER * asked.answer_tokens, rate.flops.mid),
        high=seconds(asked.most_tokens, asked.most_tokens, rate.flops.low),
    )

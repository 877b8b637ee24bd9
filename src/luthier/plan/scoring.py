"""How long answers take in the middle of a run: those by which `checkpoints.best_by` chooses, at each validation; those `rl` learns from.

Answers are written greedily, as many at once as there are slots; a row that ends makes room for the next, so that of a pass's time

    layers · CALL_SECONDS + max(bytes of weights and caches / bandwidth, rows · 2N / rate)

there is rows · answer / slots, and at the end, where no row is left to come, once more the longest answer less the mean. Before it stand
the prompts, 2N a token and CHUNK in a pass, of which those that rows share are read once. Qwen3-0.6B (28 layers) on an H100, 100 rows with
prompts of 300 tokens and answers of 50, which may have 64: 45 slots, 100 · 50 / 45 + 14 = 125 passes that write and 59 that read, of 28 ms
each, 5.2 s, and a tenth of a second for all else. How long answers are before the model has learned to end them is a guess.
"""

import math
from typing import Literal

from luthier.plan.asked import CHUNK, ROWS_AT_A_TIME, Asked, asked_for_the_best, asked_to_learn, rows_at_once
from luthier.plan.layout import Chosen, Task
from luthier.plan.serving import serving_needs
from luthier.plan.setup import Setup
from luthier.plan.shape import ModelShape
from luthier.plan.speed import NOTHING, Range, Rate, Writing
from luthier.runs.summary import DataSummary

CALL_SECONDS = 1e-3
"""Of one layer with its adapters for one token of a batch, whatever its size: Python and small operations. 1.1 ms with 4, 8 and 24 layers
of 192 and 256 (2026-11-29, Xeon, one thread, torch 2.13, transformers 5.23), and with the engine's continuous batches what four points
measured agree with (docs/notes/evaluate.md); the same is taken for a GPU, which waits for Python here."""
LONGER = 2.0
"""The longest answer of all, in answers of the data; at least 1, at most what the task allows."""


def writing(task: Task, data: DataSummary | Literal["stated"], chosen: Chosen, rate: Rate) -> Writing:
    """How long the answers of a run take that are written while it trains."""

    def seconds(asked: Asked | Literal["nothing"]) -> Range:
        return NOTHING if asked == "nothing" else scoring_seconds(task.shape, chosen.setup, asked, rate, task.place.device.bandwidth)

    recipe, survey = task.recipe, chosen.survey
    updates = 1 if recipe.rl == "none" else recipe.rl.updates
    drawn = seconds(asked_to_learn(recipe, data, survey)).times(1 / updates)
    return Writing(validation=seconds(asked_for_the_best(recipe, data, survey)), step=drawn)


def scoring_seconds(shape: ModelShape, setup: Setup, asked: Asked, rate: Rate, bandwidth: float) -> Range:
    """Of one validation's answers, which replicas share; a bandwidth of 0 is not known, and left out."""
    rows = asked.rows_of(setup.layout)
    each = asked.prompt_tokens + asked.most_tokens
    slots = min(rows, rows_at_once(each))
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

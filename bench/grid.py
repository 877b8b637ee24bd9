"""Which cells bench/plan_accuracy.py measures: a grid of all kinds, on which constants may be chosen, and random ones to judge them."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np

from bench.cells import Cell, Lengths
from bench.shapes import Shape

SMALL = Shape(hidden=256, layers=4, heads=4, kv_heads=2, head_width=64, intermediate=1024, vocabulary=8_000, tied=True)
MIDDLE = Shape(hidden=512, layers=8, heads=8, kv_heads=4, head_width=128, intermediate=1536, vocabulary=32_000, tied=True)
LARGE = Shape(hidden=1024, layers=6, heads=16, kv_heads=8, head_width=64, intermediate=3072, vocabulary=16_000, tied=False)
"""5, 47 and 108 million parameters."""
MOST_PARAMETERS = 90e6
MOST_WORK = 8e10
"""Of a drawn cell: parameters × tokens of a step; half a second of two cores."""
PLACES = range(1024, 4609)
"""Of its largest micro batch, about."""


def grid() -> list[Cell]:
    """72 cells, in an order in which the first N are of all kinds."""
    every = [
        replace(kind, shape=shape, length=length, rows=rows)
        for (shape, length, rows), kind in product(
            ((SMALL, 512, 8), (MIDDLE, 256, 8), (LARGE, 256, 4), (SMALL, 1024, 4), (MIDDLE, 512, 4), (LARGE, 128, 8)),
            _kinds(),
        )
    ]
    step = 23  # has no divisor in common with 72: neighbours differ in shape, length and kind
    return [every[place * step % len(every)] for place in range(len(every))]


def drawn(seed: int, number: int) -> list[Cell]:
    """So many cells of other models, lengths, ranks and shares of targets: nothing can have been fitted to those of a new seed."""
    cells = _random_cells(np.random.default_rng(seed))
    return [next(cells) for _ in range(number)]


def _kinds() -> tuple[Cell, ...]:
    """How a model is trained; shapes and lengths are to be filled in."""
    lora = Cell(shape=SMALL, rank=16, length=0, rows=0, dtype="bfloat16", checkpointing=False, packing="bins")
    full = replace(lora, rank=0)
    return (
        lora,
        replace(lora, rank=64, packing="tree", lengths="shared"),
        replace(lora, rank=8, dtype="float32"),
        replace(lora, lengths="even", checkpointing=True),
        replace(lora, packing="off"),
        replace(lora, dtype="float32", packing="off", lengths="even", checkpointing=True),
        full,
        replace(full, lengths="even", checkpointing=True),
        replace(full, dtype="float32", packing="off"),
        replace(lora, rank=32, packing="tree", checkpointing=True),
        replace(lora, rank=64, packing="off", checkpointing=True),
        replace(full, dtype="float32", lengths="even", checkpointing=True),
    )


def _random_cells(random: np.random.Generator) -> Iterator[Cell]:
    dtypes: tuple[Literal["bfloat16", "float32"], ...] = ("bfloat16", "float32")
    packings: tuple[Literal["off", "bins", "tree"], ...] = ("off", "bins", "tree")
    lengths: tuple[Lengths, ...] = ("even", "ragged", "shared")
    while True:
        length = round(2 ** random.uniform(6.6, 9.7))  # 97 to 832 tokens
        cell = Cell(
            shape=_random_shape(random),
            rank=int(random.choice((0, 4, 12, 24, 48, 96), p=(0.3, 0.14, 0.14, 0.14, 0.14, 0.14))),
            length=length,
            rows=max(1, round(int(random.choice(PLACES)) / length)),
            dtype=dtypes[int(random.integers(2))],
            checkpointing=bool(random.random() < 0.4),
            packing=packings[int(random.integers(3))],
            lengths=lengths[int(random.integers(3))],
            supervised=float(random.choice((0.1, 0.25, 0.5, 0.9))),
        )
        parameters = cell.shape.matrix_parameters + (0 if cell.shape.tied else cell.shape.hidden * cell.shape.vocabulary)
        if parameters < MOST_PARAMETERS and parameters * 16 * length < MOST_WORK:
            yield cell


def _random_shape(random: np.random.Generator) -> Shape:
    width, kv_heads, groups = (int(random.choice(of)) for of in ((32, 64, 128), (1, 2, 4), (1, 2, 3, 4)))
    hidden = 64 * int(random.integers(3, 15))
    return Shape(
        hidden=hidden,
        layers=int(random.integers(2, 13)),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        head_width=width,
        intermediate=64 * round(hidden * random.uniform(2, 4) / 64),
        vocabulary=1000 * int(random.integers(4, 65)),
        tied=bool(random.integers(2)),
    )

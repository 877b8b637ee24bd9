"""The least that a step must compute, counted; and how fast this machine multiplies at the step's shapes, measured."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.protocol import RANK, Row
from bench.shapes import Shape

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "4090": 165e12}
"""Dense bfloat16 FLOP/s from the makers' data sheets, by a part of the device's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one optimizer step over its rows must touch. A source is a token at which a target is predicted."""

    tokens: int
    sources: int
    pairs: int
    """(query, key) pairs of causal attention."""
    source_pairs: int
    """Those whose query is a source: the last layer needs no others."""

    def __add__(self, other: "Step") -> "Step":
        return Step(
            tokens=self.tokens + other.tokens,
            sources=self.sources + other.sources,
            pairs=self.pairs + other.pairs,
            source_pairs=self.source_pairs + other.source_pairs,
        )


NOTHING = Step(tokens=0, sources=0, pairs=0, source_pairs=0)


def separate(rows: Sequence[Row]) -> Step:
    """Every row computed for itself."""
    sources = [place for row in rows for place, target in enumerate(row.supervised) if target]  # predicted from `place` tokens
    lengths = [len(row.ids) for row in rows]
    return Step(
        tokens=sum(lengths), sources=len(sources), pairs=sum(length * (length + 1) // 2 for length in lengths), source_pairs=sum(sources)
    )


def shared(rows: Sequence[Row]) -> Step:
    """Leading tokens that rows have in common computed once, down to the last one: a trie."""
    root: dict[int, dict] = {}  # type: ignore[type-arg]  # a trie has no finite type
    tokens = pairs = 0
    sources: dict[int, int] = {}
    for row in rows:
        node = root
        for depth, (token, target) in enumerate(zip(row.ids, row.supervised, strict=True)):
            if target:
                sources[id(node)] = depth
            if token not in node:
                node[token] = {}
                tokens, pairs = tokens + 1, pairs + depth + 1
            node = node[token]
    return Step(tokens=tokens, sources=len(sources), pairs=pairs, source_pairs=sum(sources.values()))


def operations(shape: Shape, step: Step) -> float:
    """Floating-point operations of an exact LoRA step, forward and backward, with nothing recomputed.

    A frozen product costs 2·in·out per token forward and as much for the gradient of its input; that of the first layer's q, k, v is
    not needed, for the embedding is frozen. The last layer's q, o and MLP, and the head, are needed at sources only. An adapter costs
    2·r·(in + out) three times: forward, gradient of its input, gradient of its weights. Attention costs 4 per pair and query width
    forward (scores, values) and 8 backward. Adding up, norms and the optimizer multiply no matrices and are not counted.
    """
    total = 4.0 * step.sources * shape.hidden * shape.vocabulary
    for layer in range(shape.layers):
        last = layer == shape.layers - 1
        for name, (width, out) in shape.products.items():
            rows = step.sources if last and name not in ("k", "v") else step.tokens
            first = layer == 0 and name in ("q", "k", "v")
            total += (2 if first else 4) * rows * width * out
            total += 2 * rows * RANK * (2 * (width + out) + (out if first else width + out))
        total += 12 * (step.source_pairs if last else step.pairs) * shape.heads * shape.head_width
    return total


def four_n(shape: Shape, tokens: int) -> float:
    """The usual count for LoRA, 4·N per token (forward 2·N, gradient of the input 2·N); N has the head, not the embedding."""
    return 4.0 * shape.matrix_parameters * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """FLOP/s of the step's own products, and how they were measured."""

    flops: float
    told: str


def measure_rate(shape: Shape, step: Step, device: torch.device, repeats: int = 20) -> Rate:
    """bfloat16 products of a layer (q·k·v and gate·up each as one) and of the head, both directions, into kept outputs; each one's best."""
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    layer = (
        (shape.hidden, queries + 2 * keys),
        (queries, shape.hidden),
        (shape.hidden, 2 * shape.intermediate),
        (shape.intermediate, shape.hidden),
    )
    work = [(step.tokens, width, out, shape.layers) for width, out in layer]
    work.append((min(step.sources, 1024), shape.hidden, shape.vocabulary, 1))
    seconds = total = 0.0
    for rows, width, out, times in work:
        for inner, outer in ((width, out), (out, width)):
            seconds += times * _best_seconds(rows, inner, outer, device, repeats)
            total += times * 2.0 * rows * inner * outer
    told = (
        f"{total / seconds / 1e9:,.0f} GFLOP/s: bfloat16 products of {step.tokens} tokens, outputs kept, {torch.get_num_threads()} threads"
    )
    return Rate(flops=total / seconds, told=told)


def peak_of(device: torch.device) -> tuple[float, str]:
    """The device's bfloat16 peak from its data sheet; 0 where it is not known."""
    name = torch.cuda.get_device_name(device)
    return next(((flops, f"data sheet of {part}") for part, flops in PEAKS.items() if part in name), (0.0, f"no data sheet for {name}"))


def _best_seconds(rows: int, inner: int, outer: int, device: torch.device, repeats: int) -> float:
    left = torch.randn(rows, inner, device=device).bfloat16()
    right = torch.randn(outer, inner, device=device).bfloat16().t()  # a linear layer's weight, transposed as it is multiplied with
    out = torch.empty(rows, outer, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(repeats):
        _wait(device)
        began = time.perf_counter()
        torch.mm(left, right, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

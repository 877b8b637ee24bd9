"""Steps of two adapters over one base: one after the other, and both in one batch. Says whether the second would be worth building.

    python bench/adapters.py --pairs 7 --size demo --rows 8 --length 96

Twice: with Luthier's own step on packs, where one adapter is trained on both's rows: the least that two in one batch could take (the
base's products are the same, an adapter's are as many, and both are updated); and with PEFT's plain layers on padded rows, each adapter on
its own half, which is what it would be and must give the same gradients. Processor seconds on one thread; who begins changes.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import Qwen3Config

from bench.shapes import SHAPES, Shape
from luthier.data.pack import bins
from luthier.data.store import TokenRow
from luthier.model.adapt import add_lora
from luthier.model.fuse import fuse
from luthier.model.place import trained_of
from luthier.model.share import around_the_same_weights
from luthier.recipe.schema import Lora
from luthier.train.batch import MicroBatch, collate, of_pack
from luthier.train.objective import nll_sum
from luthier.train.precision import Precision
from luthier.train.slices import made_up
from luthier.train.step import train_step

CPU = torch.device("cpu")
DEMO = Shape(hidden=192, layers=4, heads=6, kv_heads=3, head_width=32, intermediate=512, vocabulary=3072, tied=True)
SIZES = {"demo": DEMO, "S": SHAPES["S"]}
SUPERVISED = 0.3


def main() -> None:
    """Pairs, and their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--rows", type=int, default=8, help="of a step of one adapter")
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=3, help="in a measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape, dtype = SIZES[options.size], {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    rows = [_rows(options.rows, options.length, shape.vocabulary, seed) for seed in (0, 1)]
    ways = {"fused": _fused(shape, dtype, rows), "plain": _plain(shape, dtype, rows)}
    found = {name: _paired(*sides, options.pairs, options.steps) for name, sides in ways.items()}
    print(json.dumps({**found, **vars(options)}, indent=1))


def _fused(shape: Shape, dtype: torch.dtype, rows: Sequence[Sequence[TokenRow]]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Luthier's step for each adapter, and one for both's rows; the update of the second is counted."""
    base = made_up(_config(shape), dtype)
    models = [add_lora(around_the_same_weights(base), Lora(r=16, alpha=32), seed) for seed in (0, 1)]
    for model in models:
        fuse(model, pack=True, longest=max(map(len, rows[0])))
    optimizers = [AdamW(trained_of(model).values(), lr=1e-4) for model in models]
    precision = Precision.of(dtype, CPU)

    def batch(own: Sequence[TokenRow]) -> MicroBatch:
        (pack,) = bins(own, range(len(own)), sum(map(len, own)))
        return of_pack(pack, CPU)

    apart, both = [batch(own) for own in rows], batch([row for own in rows for row in own])

    def in_turn() -> None:
        for model, optimizer, own in zip(models, optimizers, apart, strict=True):
            train_step(model.train(), optimizer, [own], precision=precision, max_norm=1.0, seeds=(0, 1))

    def at_once() -> None:
        train_step(models[0].train(), optimizers[0], [both], precision=precision, max_norm=1.0, seeds=(0, 1))
        for weight in trained_of(models[1]).values():
            weight.grad = torch.zeros_like(weight)
        optimizers[1].step()
        optimizers[1].zero_grad(set_to_none=True)

    return in_turn, at_once


def _plain(shape: Shape, dtype: torch.dtype, rows: Sequence[Sequence[TokenRow]]) -> tuple[Callable[[], None], Callable[[], None]]:
    """PEFT's layers, in turn and with each adapter on its half of the batch; raises where their gradients differ."""
    base = made_up(_config(shape), dtype)
    models = [add_lora(around_the_same_weights(base), Lora(r=16, alpha=32), seed).train() for seed in (0, 1)]
    for model in models:
        for name, weight in trained_of(model).items():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.02)
    together = _side_by_side(models, around_the_same_weights(base))
    optimizers = [AdamW(trained_of(model).values(), lr=1e-4) for model in models]
    apart = [collate(own, range(len(own)), CPU) for own in rows]
    everyone = [row for own in rows for row in own]
    both = collate(everyone, range(len(everyone)), CPU)

    def update() -> None:
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def in_turn() -> None:
        for model, own in zip(models, apart, strict=True):
            (nll_sum(model, own) / own.num_targets).backward()  # type: ignore[no-untyped-call]
        update()

    def at_once() -> None:
        (nll_sum(together, both) / apart[0].num_targets).backward()  # type: ignore[no-untyped-call]
        update()

    if dtype is torch.float32:
        _same_gradients(models, apart, together, both)
    return in_turn, at_once


def _same_gradients(models: Sequence[PeftModel], apart: Sequence[MicroBatch], together: nn.Module, both: MicroBatch) -> None:
    weights = [weight for model in models for weight in trained_of(model).values()]

    def gradients() -> list[Tensor]:
        found = [weight.grad.clone() for weight in weights if weight.grad is not None]
        for weight in weights:
            weight.grad = None
        return found

    for model, own in zip(models, apart, strict=True):
        nll_sum(model, own).backward()  # type: ignore[no-untyped-call]
    expected = gradients()
    nll_sum(together, both).backward()  # type: ignore[no-untyped-call]
    worst = max(float((one - two).norm() / two.norm()) for one, two in zip(gradients(), expected, strict=True))
    if not worst < 1e-4:
        raise SystemExit(f"gradients in one batch are {worst:.1e} away")


def _side_by_side(models: Sequence[PeftModel], base: nn.Module) -> nn.Module:
    """A model around the same weights whose layers give the first half of a batch to one adapter and the second to the other."""
    for name, layer in models[0].get_base_model().named_modules():
        if isinstance(layer, LoraLinear):
            other = models[1].get_base_model().get_submodule(name)
            module = base.get_submodule(name)
            module.forward = _split(module.forward, layer, other)
    return base.train()


def _split(forward: Callable[[Tensor], Tensor], *layers: nn.Module) -> Callable[[Tensor], Tensor]:
    def split(x: Tensor) -> Tensor:
        halves = []
        for layer, half in zip(layers, x.chunk(2), strict=True):
            assert isinstance(layer, LoraLinear)
            a, b, scaling = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]
            halves.append(b(a(half.to(a.weight.dtype))) * scaling)
        y = forward(x)
        return y + torch.cat(halves).to(y.dtype)

    return split


def _paired(in_turn: Callable[[], None], at_once: Callable[[], None], pairs: int, steps: int) -> dict[str, object]:
    """Seconds of a step of both adapters, and how many times as fast one batch is, pair by pair."""
    sides = {"in_turn": in_turn, "at_once": at_once}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(pairs + 1):  # the first warms up
        for name in sorted(sides, reverse=bool(pair % 2)):
            start = time.process_time()
            for _ in range(steps):
                sides[name]()
            if pair:
                seconds[name].append((time.process_time() - start) / steps)
    ratios = sorted(one / two for one, two in zip(seconds["in_turn"], seconds["at_once"], strict=True))
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    return {**medians, "ratio": [round(each, 3) for each in (statistics.median(ratios), ratios[0], ratios[-1])]}


def _rows(number: int, length: int, vocabulary: int, seed: int) -> list[TokenRow]:
    """Ragged rows of random ids, as many targets in each adapter's step."""
    draw = np.random.default_rng(7)
    lengths = draw.integers(length // 2, length + 1, number)
    ids = np.random.default_rng(seed)
    rows = []
    for each in lengths:
        supervised = np.zeros(each, np.bool_)
        supervised[-max(1, int(SUPERVISED * each)) :] = True
        rows.append(TokenRow(ids=ids.integers(0, vocabulary, each).astype(np.int32), supervised=supervised))
    return rows


def _config(shape: Shape) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        tie_word_embeddings=shape.tied,
    )


if __name__ == "__main__":
    main()

"""Two ranks beside one, with one thread each: replicas that divide a step's rows, and a pipeline's stages that divide the layers.

    python bench/scaling.py --pairs 7 --json scaling.json

One process and both ranks take turns at the same steps, in the same two processes: a slow minute of the machine slows both, and while the
first rank is alone the second sleeps. Of a pipeline's pass, forward and backward, each stage also tells what share it waited, beside
(p - 1) / (m + p - 1), which 1F1B leaves idle where all micro batches and stages take as long.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python bench/scaling.py` looks for modules in bench/ only

import numpy as np
import torch
import torch.distributed as dist
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.initialization import no_init_weights

from bench.shapes import SHAPES, Shape
from luthier.core.environment import SETTINGS, start_settings
from luthier.core.hardware import this_machine
from luthier.data.order import rank_shares
from luthier.data.store import RowWriter, TokenRow, TokenRows
from luthier.data.survey import extents
from luthier.model.adapt import add_lora
from luthier.model.fuse import fuse
from luthier.model.load import resolve_dtype
from luthier.model.mesh import Mesh
from luthier.model.place import Placed, place
from luthier.plan.setup import Layout, Setup
from luthier.plan.shape import shape_of
from luthier.plan.speed import stages
from luthier.recipe.schema import Lora, Training
from luthier.runs.workload import MicroBatchSize, Survey
from luthier.train.batch import MicroBatch, micro_batches
from luthier.train.host import prepare_host
from luthier.train.optim import make_optimizer, set_rate
from luthier.train.passes import backward
from luthier.train.precision import Precision
from luthier.train.ranks import ALONE, Ranks, join, part
from luthier.train.step import train_step

CPU = torch.device("cpu")
LORA = Lora(r=16, alpha=32.0)
ROWS, RAGGED = 16, MicroBatchSize(rows=16, tokens=1024, packing="bins")
"""Of a step that replicas divide, and the packs they make of theirs."""
LENGTH, SUPERVISED = 256, 0.4
"""Of a row, where micro batches shall be alike."""
EVEN = MicroBatchSize(rows=2, tokens=2 * LENGTH, packing="bins")
NUM_BATCHES = (2, 4, 8, 16)
"""Micro batches of a pipeline's pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The same rows by one process and by both, seconds."""

    alone: float
    together: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What was measured of one way to divide the work."""

    name: str
    tokens: int
    """Of a step."""
    pairs: tuple[Pair, ...]
    waited: tuple[tuple[float, ...], ...] = ()
    """By stage, the share of each pass in which it waited."""
    formula: float = 0.0
    """The share that 1F1B leaves idle."""

    @property
    def gains(self) -> list[float]:
        """How many times as fast both are, pair by pair."""
        return sorted(pair.alone / pair.together for pair in self.pairs)

    def row(self) -> str:
        """A line of the table."""
        alone, together = (self.tokens / statistics.median(seconds) for seconds in zip(*map(_seconds, self.pairs), strict=True))
        idle = " · ".join(f"{statistics.median(shares):.1%}" for shares in self.waited) or "–"
        gains = f"{statistics.median(self.gains):.2f} × ({self.gains[0]:.2f} … {self.gains[-1]:.2f})"
        return f"| {self.name} | {alone:,.0f} | {together:,.0f} | {gains} | {idle} | {f'{self.formula:.1%}' if self.waited else '–'} |"


HEAD = """| | tokens/s, 1 rank | 2 ranks | 2 ranks are | stages idle | 1F1B's formula |
|---|---:|---:|---|---|---:|"""


@dataclass(slots=True)
class Watch:
    """Adds up how long this rank waits for others."""

    seconds: float = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around each wait."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A model to train, whole or a stage of it."""

    placed: Placed
    optimizer: torch.optim.Optimizer
    precision: Precision

    def step(self, batches: Sequence[MicroBatch]) -> None:
        """One update, at rate 0: all are alike, and a rank that has been alone still has the weights of the others."""
        set_rate(self.optimizer, 0.0)
        train_step(self.placed.model, self.optimizer, batches, precision=self.precision, max_norm=1.0, seeds=(0, 1))

    def one_pass(self, batches: Sequence[MicroBatch]) -> None:
        """Forward and backward."""
        backward(self.placed.model, batches, self.precision, seeds=(0, 1), num_targets=sum(batch.num_targets for batch in batches))
        self.optimizer.zero_grad()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a rank measures with."""

    ranks: Ranks
    shape: Shape
    pairs: int
    folder: Path
    watch: Watch = field(default_factory=Watch)

    def replicas(self) -> Course:
        """Both compute their shares of a step's rows of unlike length."""
        rows = self.rows("ragged", np.random.default_rng(0).lognormal(5.4, 0.5, ROWS).clip(32, 1000).astype(int))
        ready, alone = self.ready(Layout(data=2), rows), self.ready(Layout(), rows)
        taken = np.arange(len(rows))
        whole, share = (micro_batches(rows, part, RAGGED, CPU) for part in (taken, rank_shares(rows, taken, 2)[self.ranks.rank]))
        pairs = self.measured(lambda: alone.step(whole), lambda: ready.step(share))
        return Course(name="data: 2", tokens=int(rows.lengths.sum()), pairs=pairs)

    def pipeline(self, num_batches: int) -> Course:
        """Both compute their layers for micro batches of the same length."""
        rows = self.rows(f"even-{num_batches}", np.full(2 * num_batches, LENGTH))
        ready, alone = self.ready(Layout(pipeline=2), rows), self.ready(Layout(), rows)
        batches, waited = micro_batches(rows, np.arange(len(rows)), EVEN, CPU), list[float]()

        def together() -> None:
            self.watch.seconds, began = 0.0, time.perf_counter()
            ready.one_pass(batches)
            waited.append(self.watch.seconds / (time.perf_counter() - began))

        pairs = self.measured(lambda: alone.one_pass(batches), together)
        return Course(
            name=f"pipeline: 2, {num_batches} micro batches",
            tokens=int(rows.lengths.sum()),
            pairs=pairs,
            waited=tuple(map(tuple, self.ranks.every(waited[1:]))),  # the first warms up
            formula=1 / (num_batches + 1),
        )

    def measured(self, alone: Callable[[], None], together: Callable[[], None]) -> tuple[Pair, ...]:
        """Pairs, after one to warm up, as the first rank's clock has them."""
        found = []
        for _ in range(1 + self.pairs):
            dist.barrier()
            began = time.perf_counter()
            if self.ranks.first:
                alone()
            middle = time.perf_counter()
            dist.barrier()
            again = time.perf_counter()
            together()
            dist.barrier()
            found.append(Pair(alone=middle - began, together=time.perf_counter() - again))
        return tuple(found[1:])

    def ready(self, layout: Layout, rows: TokenRows) -> Ready:
        """The model with random weights, the same on all ranks; of it what the layout gives this one."""
        dtype, _ = resolve_dtype("auto", CPU)
        shape = self.shape
        config = Qwen3Config(
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_width,
            intermediate_size=shape.intermediate,
            vocab_size=shape.vocabulary,
            tie_word_embeddings=shape.tied,
        )
        with no_init_weights():
            base = Qwen3ForCausalLM(config).to(dtype)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for weight in base.parameters():
                weight.normal_(std=0.02)
        mesh = Mesh() if layout.devices == 1 else Mesh.of(layout, "cpu", self.watch.waiting)
        survey = Survey(steps=(extents(rows, np.arange(len(rows)), EVEN),), heaviest=(), validation=())
        stage = stages(shape_of(config.to_dict()), _setup(layout), survey)[mesh.pipeline.index]
        placed = place(add_lora(base, LORA, 0), layout, mesh, stage)
        fuse(placed.model, pack=True, longest=int(rows.lengths.max()))
        placed.model.train()
        ranks = ALONE if layout.devices == 1 else replace(self.ranks, mesh=mesh, pieces=placed.pieces)
        precision = Precision.of(dtype, CPU, ranks)
        return Ready(placed=placed, optimizer=make_optimizer(placed.trained, Training()), precision=precision)

    def rows(self, name: str, lengths: Iterable[int]) -> TokenRows:
        """Random tokens, supervised at their end; written by the first rank."""
        if self.ranks.first:
            random = np.random.default_rng(1)
            with RowWriter(self.folder, name) as writer:
                for number, length in enumerate(lengths):
                    supervised = np.arange(length) >= (1 - SUPERVISED) * length
                    ids = random.integers(0, self.shape.vocabulary, length, np.int32)
                    writer.add([TokenRow(ids=ids, supervised=supervised)], number)
        dist.barrier()
        return TokenRows(self.folder, name)


def main() -> None:
    """Start the ranks, or be one of them."""
    options = _parse(sys.argv[1:])
    if "RANK" in os.environ:
        _measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
        command = [sys.executable, *torchrun, __file__, *sys.argv[1:], "--folder", folder]
        environment = {**os.environ, **start_settings(), **SETTINGS, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=SHAPES, default="S", help="the model's shape (S)")
    parser.add_argument("--pairs", type=int, default=7, help="measured pairs of each, after one to warm up (7)")
    parser.add_argument("--json", type=Path, help="where to keep the results")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def _measure(options: argparse.Namespace) -> None:
    ranks, load_before = join(Layout(data=2)), os.getloadavg()[0]
    torch.set_num_threads(1)
    prepare_host(CPU)
    bench = Bench(ranks=ranks, shape=SHAPES[options.size], pairs=options.pairs, folder=options.folder)
    courses = [bench.replicas(), *(bench.pipeline(number) for number in NUM_BATCHES)]
    if ranks.first:
        machine = this_machine()
        about = {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "command": shlex.join(["python", "bench/scaling.py", *sys.argv[1 : sys.argv.index("--folder")]]),
            "processor": machine.processor,
            "cores": machine.cores,
            "load_before": load_before,
            "size": options.size,
            "torch": torch.__version__,
        }
        print(
            f"\n{', '.join(f'{key} {value}' for key, value in about.items())}\n\n{HEAD}\n" + "\n".join(course.row() for course in courses)
        )
        if options.json:
            options.json.write_text(json.dumps({**about, "courses": [asdict(course) for course in courses]}, indent=1), encoding="utf-8")
    part(ranks)


def _setup(layout: Layout) -> Setup:
    return Setup(
        device="cpu",
        dtype="bfloat16",
        quantization="none",
        double_quant=False,
        lora=LORA,
        optimizer="adamw",
        engine="fused",
        chunked_head=True,
        micro_batch=EVEN,
        checkpoint_activations=False,
        layout=layout,
    )


def _seconds(pair: Pair) -> tuple[float, float]:
    return pair.alone, pair.together


if __name__ == "__main__":
    main()

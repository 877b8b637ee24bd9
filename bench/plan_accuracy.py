"""The plan against real runs: each cell trains in a process of its own, and the ledger's peak is compared with the process's.

    python bench/plan_accuracy.py --memory [--cells N] [--json memory.json] [--markdown memory.md]
    python bench/plan_accuracy.py --memory --gpu                       # what torch reserves, on a machine with a GPU
    python bench/plan_accuracy.py --time --pairs 5 --json time.json    # bench/plan_time.py

Memory is what lies above the loaded model: resident bytes after loading are noted, the kernel's high-water mark is set back to them (5 into
/proc/self/clear_refs), and the run's peak less those is compared with the ledger's less its weights and the process.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python bench/plan_accuracy.py` looks for modules in bench/ only

import torch

from bench.cells import Cell, Measured, measure
from bench.plan_time import main_time
from luthier.core.environment import SETTINGS, start_settings
from luthier.core.hardware import this_machine

MEDIAN, PERCENTILE_95, LEAST = 0.05, 0.12, -0.03
"""What is promised: of the errors' sizes the median and the 95th percentile; and no plan says less than this."""
PATIENCE_SECONDS = 900


def cells() -> list[Cell]:
    """The cells, in an order in which the first N are of all kinds."""
    every = [
        replace(kind, size=size, length=length, rows=rows)
        for (size, length, rows), kind in product(
            (("256x4", 512, 8), ("512x8", 256, 8), ("1024x6", 256, 4), ("256x4", 1024, 4), ("512x8", 512, 4), ("1024x6", 128, 8)),
            _kinds(),
        )
    ]
    step = 23  # has no divisor in common with 72: neighbours differ in size, length and kind
    return [every[place * step % len(every)] for place in range(len(every))]


def _kinds() -> tuple[Cell, ...]:
    """How a model is trained; sizes and lengths are to be filled in."""
    lora = Cell(size="", rank=16, length=0, rows=0, dtype="bfloat16", checkpointing=False, packing="bins")
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


def main() -> None:
    """Measure what the command line asks for, print the tables, and keep them."""
    options = _parse(sys.argv[1:])
    if options.child:
        print(json.dumps(asdict(measure(Cell(**json.loads(options.child)), options.work))))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        if options.time:
            main_time(options)
        if options.memory:
            _main_memory(options)


def table(results: Sequence[Measured], what: str) -> str:
    """Markdown: what was promised and found, the errors of each kind of cell, and the worst cells."""
    sizes = sorted(abs(result.error) for result in results)
    found = {
        f"median error ≤ {MEDIAN:.0%}": (statistics.median(sizes), statistics.median(sizes) <= MEDIAN),
        f"95th percentile ≤ {PERCENTILE_95:.0%}": (_percentile(sizes, 0.95), _percentile(sizes, 0.95) <= PERCENTILE_95),
        f"none below {LEAST:+.0%}": (lowest := min(result.error for result in results), lowest >= LEAST),
    }
    lines = [what, "", "| promised | found | |", "|---|---|---|"]
    lines += [f"| {promise} | {value:+.1%} | {'kept' if kept else '**not kept**'} |" for promise, (value, kept) in found.items()]
    lines += ["", "| cells | number | least | median | most |", "|---|---|---|---|---|"]
    for name, group in _groups(results):
        errors = [result.error for result in group]
        lines.append(f"| {name} | {len(group)} | {min(errors):+.1%} | {statistics.median(errors):+.1%} | {max(errors):+.1%} |")
    lines += ["", "The ten worst:", "", "| cell | measured, MB | planned, MB | error | peak at |", "|---|---|---|---|---|"]
    for result in sorted(results, key=lambda result: -abs(result.error))[:10]:
        numbers = f"{result.measured / 1e6:.0f} | {result.planned / 1e6:.0f} | {result.error:+.1%}"
        lines.append(f"| {result.cell} | {numbers} | {result.peak_at} |")
    return "\n".join(lines)


def _groups(results: Sequence[Measured]) -> list[tuple[str, list[Measured]]]:
    """The results by each thing that memory depends on; one stands in many groups."""
    groups: dict[str, list[Measured]] = {}
    for result in results:
        cell = result.cell
        names = (
            "all",
            f"engine {result.engine}",
            "LoRA" if cell.rank else "full",
            cell.dtype,
            f"packing {cell.packing}",
            f"model {cell.size}",
        )
        for name in (*names, "checkpointing" if cell.checkpointing else "no checkpointing"):
            groups.setdefault(name, []).append(result)
    return list(groups.items())


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so large a share is not above."""
    return ordered[math.ceil(share * len(ordered)) - 1]


def _main_memory(options: argparse.Namespace) -> None:
    results = []
    for cell in cells()[: options.cells]:
        results.append(_in_a_process(cell, options.work))
        result = results[-1]
        numbers = f"measured {result.measured / 1e6:.0f} MB, planned {result.planned / 1e6:.0f}, {result.error:+.1%}"
        print(f"{time.strftime('%H:%M:%S')} {cell}: {numbers}", file=sys.stderr, flush=True)
    machine = this_machine()
    processor = f"{machine.processor}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, {machine.allocator}"
    device = torch.cuda.get_device_name() if options.gpu else processor
    text = table(results, f"{time.strftime('%Y-%m-%d')}, {device}, torch {torch.__version__}; {len(results)} cells.")
    print(text)
    if options.json:
        rows = [{**asdict(result), "error": result.error} for result in results]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


def _in_a_process(cell: Cell, work: Path) -> Measured:
    command = [sys.executable, __file__, "--memory", "--child", json.dumps(asdict(cell)), "--work", str(work)]
    variables = {**SETTINGS, **start_settings(), "LUTHIER_RUNS": str(work / "runs")}  # as the command line sets them
    answer = subprocess.run(
        command, env={**variables, **os.environ}, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    shutil.rmtree(work / "runs", ignore_errors=True)  # checkpoints of whole models: 0.6 GB each
    fields = json.loads(answer.stdout.splitlines()[-1])
    return Measured(**{**fields, "cell": Cell(**fields["cell"])})


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--memory", action="store_true", help="compare peaks of memory")
    parser.add_argument("--time", action="store_true", help="compare seconds")
    parser.add_argument("--gpu", action="store_true", help="the device is a GPU")
    parser.add_argument("--cells", type=int, help="the first so many cells (all)")
    parser.add_argument("--pairs", type=int, default=5, help="of --time: probes and runs of a cell, in turn (5)")
    parser.add_argument("--work", type=Path, help="where models and runs are made (a temporary folder)")
    parser.add_argument("--json", type=Path, help="a file to keep the numbers in")
    parser.add_argument("--markdown", type=Path, help="a file to keep the table in")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()

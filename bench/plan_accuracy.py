"""The plan against real runs: each cell trains in a process of its own, and the ledger's peak is compared with the process's.

    python bench/plan_accuracy.py --memory --json grid.json                      # bench/grid.py's cells, on which constants may be chosen
    python bench/plan_accuracy.py --memory --drawn 3 --cells 60 --json new.json  # 60 cells drawn at random from seed 3, to judge them
    python bench/plan_accuracy.py --memory --replan --json grid.json             # what was measured then, against the plan as it is now
    python bench/plan_accuracy.py --memory --gpu                                 # what torch reserves, on a machine with a GPU
    python bench/plan_accuracy.py --time --pairs 5 --json time.json              # bench/plan_time.py

Memory is what lies above the loaded model: resident bytes after loading are noted, the kernel's high-water mark is set back to them (5 into
/proc/self/clear_refs), and the run's peak less those is compared with the ledger's less its weights and the process. The file is written
after each cell, and cells that it has are not measured again.
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
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python bench/plan_accuracy.py` looks for modules in bench/ only

import torch

from bench.cells import Cell, Measured, measure, replanned
from bench.grid import drawn, grid
from bench.plan_time import main_time
from luthier.core.environment import SETTINGS, start_settings
from luthier.core.hardware import this_machine

MEDIAN, PERCENTILE_95, LEAST = 0.05, 0.12, -0.03
"""What is promised: of the errors' sizes the median and the 95th percentile; and no plan says less than this."""
PATIENCE_SECONDS = 900


def main() -> None:
    """Measure what the command line asks for, print the tables, and keep them."""
    options = _parse(sys.argv[1:])
    if options.child:
        print(json.dumps(measure(Cell.of_json(json.loads(options.child)), options.work).to_json()))
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
            f"targets {cell.supervised:.0%}",
        )
        for name in (*names, "checkpointing" if cell.checkpointing else "no checkpointing"):
            groups.setdefault(name, []).append(result)
    return list(groups.items())


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so large a share is not above."""
    return ordered[math.ceil(share * len(ordered)) - 1]


def _main_memory(options: argparse.Namespace) -> None:
    known = _kept(options.json)
    if options.replan:
        results = [replanned(result, options.work) for result in known.values()]
    else:
        results = []
        for cell in grid()[: options.cells] if options.drawn is None else drawn(options.drawn, options.cells or 60):
            results.append(known.pop(cell) if cell in known else _in_a_process(cell, options.work))
            print(f"{time.strftime('%H:%M:%S')} {_told(results[-1])}", file=sys.stderr, flush=True)
            _keep(options.json, [*results, *known.values()])
    machine = this_machine()
    processor = f"{machine.processor}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, {machine.allocator}"
    device = torch.cuda.get_device_name() if options.gpu else processor
    text = table(results, f"{time.strftime('%Y-%m-%d')}, {device}, torch {torch.__version__}; {len(results)} cells.")
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


def _kept(path: Path | None) -> dict[Cell, Measured]:
    """What was measured before."""
    if path is None or not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {result.cell: result for result in map(Measured.of_json, rows)}


def _keep(path: Path | None, results: Sequence[Measured]) -> None:
    if path is not None:
        path.write_text(json.dumps([result.to_json() for result in results], indent=1) + "\n", encoding="utf-8")


def _told(result: Measured) -> str:
    numbers = f"measured {result.measured / 1e6:.0f} MB, planned {result.planned / 1e6:.0f}, {result.error:+.1%}"
    return f"{result.cell}: {numbers}"


def _in_a_process(cell: Cell, work: Path) -> Measured:
    command = [sys.executable, __file__, "--memory", "--child", json.dumps(asdict(cell)), "--work", str(work)]
    variables = {**SETTINGS, **start_settings(), "LUTHIER_RUNS": str(work / "runs")}  # as the command line sets them
    answer = subprocess.run(
        command, env={**variables, **os.environ}, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    shutil.rmtree(work / "runs", ignore_errors=True)  # checkpoints of whole models: 0.6 GB each
    return Measured.of_json(json.loads(answer.stdout.splitlines()[-1]))


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--memory", action="store_true", help="compare peaks of memory")
    parser.add_argument("--time", action="store_true", help="compare seconds")
    parser.add_argument("--gpu", action="store_true", help="the device is a GPU")
    parser.add_argument("--cells", type=int, help="the first so many cells (all 72; of drawn ones 60)")
    parser.add_argument("--drawn", type=int, help="a seed: cells drawn at random instead of the grid's")
    parser.add_argument("--replan", action="store_true", help="measure nothing: today's plan beside what --json has")
    parser.add_argument("--pairs", type=int, default=5, help="of --time: probes and runs of a cell, in turn (5)")
    parser.add_argument("--work", type=Path, help="where models and runs are made (a temporary folder)")
    parser.add_argument("--json", type=Path, help="a file to keep the numbers in, and to take those of cells that it has from")
    parser.add_argument("--markdown", type=Path, help="a file to keep the table in")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()

"""The training benchmark: Luthier and its peers side by side on the same rows, model, batch, LoRA and precision.

    python bench/train.py --workload i --size S --rounds 5 --json results.json
    python bench/train.py --workload ii --size S --luthier "" --luthier data.packing=bins --peers trl-default,trainer,trl-whole
    python bench/train.py --gpu --size 8B --peers trl-liger

Peers live in environments of their own (bench/peers/install.sh). The rows are made here; each contestant counts what it trains, and the
counts are compared. bench/report.py turns the JSON into the tables of docs/performance.md.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python bench/train.py` looks for modules in bench/ only

import torch
from transformers.utils import logging

from bench import floor
from bench.contest import Course, compete, environment_python
from bench.protocol import Row, account
from bench.report import detail, summary
from bench.results import Counted, Results
from bench.settings import CPU_PEERS, GPU_PEERS, PEERS, Setting, allocators, luthier
from bench.shapes import SHAPES, Shape, make_model
from bench.workloads import KINDS, Rows, make_rows
from luthier.core.errors import LuthierError
from luthier.core.hardware import this_machine

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the contest that the command line asks for, print it, and keep it."""
    options = _parse(sys.argv[1:])
    try:
        results = _contest(options)
    except LuthierError as error:
        sys.exit(f"bench: {error}")
    print(f"\n{detail(results)}\n\n{summary([results])}")
    if options.json:
        results.write(options.json)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workload", choices=KINDS, default="i", help="; ".join(f"{name}: {kind.told}" for name, kind in KINDS.items()))
    parser.add_argument("--size", choices=SHAPES, help="the model's shape (S; with --gpu 0.6B)")
    parser.add_argument("--rows", type=int, help="answers to train, so many in an epoch (32; with --gpu 1024)")
    parser.add_argument("--batch", type=int, help="rows a step (16; with --gpu 64)")
    parser.add_argument("--rounds", type=int, default=5, help="measured epochs of each contestant, after one to warm up (5)")
    parser.add_argument("--peers", help=f"names, with commas; or none. All: {', '.join(PEERS)}")
    parser.add_argument("--luthier", action="append", help="recipe keys of a Luthier variant, 'data.packing=bins'; once for each variant")
    parser.add_argument("--dropout", type=float, default=0.0, help="of all contestants' adapters (0)")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/debian-sections.yaml", help="where workload v has its rows from")
    parser.add_argument("--gpu", action="store_true", help="the same contest on CUDA")
    parser.add_argument("--threads", type=int, default=2, help="of each contestant, one of which runs at a time (2)")
    parser.add_argument("--allocator", choices=allocators(), default=allocators()[0], help=f"of all contestants ({allocators()[0]})")
    parser.add_argument("--passive", action="store_true", help="peers' waiting threads sleep too, which helps them on a busy machine")
    parser.add_argument("--patience", type=float, default=1800, help="seconds to wait for an epoch (1800)")
    parser.add_argument("--json", type=Path, help="where to keep the results")
    parser.add_argument("--work", type=Path, help="environments, models and scratch ($LUTHIER_BENCH, or bench/.work)")
    options = parser.parse_args(words)
    options.work = (options.work or Path(os.environ.get("LUTHIER_BENCH", ROOT / "bench/.work"))).absolute()
    options.size = options.size or ("0.6B" if options.gpu else "S")
    options.rows = options.rows or (1024 if options.gpu else 32)
    options.batch = options.batch or (64 if options.gpu else 16)
    default = ",".join(GPU_PEERS if options.gpu else CPU_PEERS)
    options.peers = [name for name in (default if options.peers is None else options.peers).split(",") if name not in ("", "none")]
    if unknown := [name for name in options.peers if name not in PEERS]:
        parser.error(f"no peer is called {unknown[0]}; there are {', '.join(PEERS)}")
    if options.rows % options.batch:
        parser.error(f"--rows {options.rows} is no multiple of --batch {options.batch}: a step would be short")
    if options.gpu and not torch.cuda.is_available():
        sys.exit("bench: --gpu: torch sees no CUDA device here; run it on a machine with a GPU and a CUDA build of torch")
    return options


def _contest(options: argparse.Namespace) -> Results:
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    load_before = os.getloadavg()[0]
    if load_before > 0.7:
        print(f"the load is {load_before:.2f}: others are at work, and the figures will show it", file=sys.stderr)
    device = torch.device("cuda" if options.gpu else "cpu")
    settings = [*map(luthier, options.luthier or [""]), *(PEERS[name] for name in options.peers)]
    _need_environments(settings, options.work)
    shape = SHAPES[options.size]
    model = make_model(options.size, options.work)
    rows = make_rows(options.workload, options.rows, model, options.recipe, options.work)
    step = floor.shared(rows.rows[: options.batch])
    rate = floor.measure_rate(shape, step, device)
    print(f"{options.rows} rows, {sum(len(row.ids) for row in rows.rows)} tokens; {rate.told}", file=sys.stderr)
    course = Course(
        files=rows.files,
        batch=options.batch,
        dropout=options.dropout,
        device="cuda" if options.gpu else "cpu",
        work=options.work,
        rounds=options.rounds,
        variables={"OMP_NUM_THREADS": str(options.threads)} | ({"OMP_WAIT_POLICY": "PASSIVE"} if options.passive else {}),
        allocator=options.allocator,
        patience_seconds=options.patience,
        floor_of=lambda setting, order, resolved: _floor(shape, rows, (setting, order, resolved)),
        told=lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True),
    )
    entries = compete(settings, course)
    rate = max(rate, floor.measure_rate(shape, step, device), key=lambda measured: measured.flops)  # others may have disturbed one
    peak, peak_told = floor.peak_of(device) if options.gpu else (0.0, "")
    machine = this_machine()
    return Results(
        date=time.strftime("%Y-%m-%d %H:%M"),
        command=shlex.join(["python", "bench/train.py", *sys.argv[1:]]),
        processor=machine.processor,
        cores=machine.cores,
        threads=options.threads,
        load_before=load_before,
        gpu=torch.cuda.get_device_name(device) if options.gpu else "",
        workload=options.workload,
        told=KINDS[options.workload].told,
        size=options.size,
        batch=options.batch,
        dropout=options.dropout,
        allocator=options.allocator,
        rows=_counted(rows.rows),
        whole=_counted(rows.whole),
        rate_flops=rate.flops,
        rate_told=rate.told,
        peak_flops=peak,
        peak_told=peak_told,
        four_n_operations=floor.four_n(shape, sum(len(row.ids) for row in rows.rows)),
        entries=tuple(entries),
    )


def _need_environments(settings: Sequence[Setting], work: Path) -> None:
    missing = {setting.environment for setting in settings if not environment_python(setting, work).exists()}
    if missing:
        raise LuthierError(
            f"no environment for {', '.join(sorted(missing))}",
            where=str(work / "envs"),
            change=f"make it: LUTHIER_BENCH={work} bench/peers/install.sh {' '.join(sorted(missing))}",
        )


def _floor(shape: Shape, rows: Rows, ran: tuple[Setting, Sequence[Sequence[int]], Mapping[str, Any]]) -> float:
    """Least operations of an epoch in the contestant's own form: prefixes count once only for who shares them between rows of a step."""
    setting, order, resolved = ran
    if order and resolved.get("data.packing") == "tree":
        return sum(floor.operations(shape, floor.shared([rows.rows[number] for number in numbers])) for numbers in order)
    return floor.operations(shape, floor.separate(rows.whole if setting.whole else rows.rows))


def _counted(rows: Sequence[Row]) -> Counted:
    return Counted(**asdict(account((row.ids, row.supervised) for row in rows)))


if __name__ == "__main__":
    main()

"""results.json files as Markdown: `python bench/report.py a.json b.json …` prints the tables of docs/performance.md."""

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python bench/report.py` looks for modules in bench/ only

from bench.results import Entry, Results, best_peer, disturbed, ratio

SUMMARY = (
    ("workload", "---"),
    ("variant", "---"),
    ("× TRL default", "---:"),
    ("× best peer", "---:"),
    ("× TRL on whole dialogues", "---:"),
    ("share of the floor", "---:"),
    ("peak memory / best peer's", "---:"),
)
DETAIL = (
    ("contestant", "---"),
    ("seconds an epoch", "---:"),
    ("processor seconds, least", "---:"),
    ("useful tokens/s", "---:"),
    ("Luthier is", "---:"),
    ("share of its floor", "---:"),
    ("peak memory, MB", "---:"),
    ("first step, s", "---:"),
    ("rows", "---"),
)


def summary(all_results: list[Results]) -> str:
    """One line for each workload and variant of Luthier: the goals' figures."""
    lines = [_line(name for name, _ in SUMMARY), _line(rule for _, rule in SUMMARY)]
    for results in all_results:
        found = {entry.name: entry for entry in results.ran}
        best = best_peer(results)
        for entry in (item for item in results.ran if not item.peer):
            whole = min((item for item in results.ran if item.whole), key=lambda item: item.seconds, default=None)
            cells = [
                f"{results.workload}, {results.size}: {results.told}",
                f"`{entry.name}`",
                _ratio(found.get("trl-default"), entry),
                f"{_ratio(best, entry)} {best.name}" if best else "–",
                _ratio(whole, entry),
                f"{results.share_of_floor(entry):.0%}",
                f"{_peak(entry) / _peak(best):.2f}" if best else "–",
            ]
            lines.append(_line(cells))
    return "\n".join(lines)


def detail(results: Results) -> str:
    """All contestants of one contest, with its conditions."""
    gpu = f", {results.gpu}" if results.gpu else ""
    lines = [
        f"**{results.workload}, {results.size}** — {results.told}; {results.rows.rows} rows, {results.rows.tokens} tokens, "
        f"{results.rows.supervised} supervised; {results.batch} rows a step, LoRA r 16, dropout {results.dropout:g}, bfloat16.",
        f"{results.date}, {results.processor}, {results.cores} cores, {results.threads} threads{gpu}, "
        f"load before {results.load_before:.2f}. Floor at {results.rate_told}. Allocator of all: {results.allocator or 'not recorded'}.",
        *([f"MFU: 4·N·tokens against {results.peak_flops / 1e12:,.0f} TFLOP/s ({results.peak_told})."] if results.peak_flops else []),
        f"`{results.command}`",
        "",
        _line(name for name, _ in DETAIL),
        _line(rule for _, rule in DETAIL),
    ]
    first = next((entry for entry in results.ran if not entry.peer), None)
    for entry in results.ran:
        faster = "–" if first is None else "1" if entry is first else str(ratio(entry, first))
        cells = [
            f"`{entry.name}`",
            f"{entry.seconds:.2f}",
            f"{min(item.processor_seconds for item in entry.rounds):.2f}",
            f"{results.tokens_per_second(entry):,.0f}",
            faster,
            f"{results.share_of_floor(entry):.0%}" + _mfu(results, entry),
            f"{_peak(entry) / 1e6:,.0f}",
            f"{entry.first_step_seconds:.1f}",
            results.agrees(entry),
        ]
        lines.append(_line(cells))
    failed = [f"- `{entry.name}` failed: {entry.failed}" for entry in results.entries if entry.failed]
    others = disturbed(results.ran)
    told = [f"- Others on the machine took more than 5 % of the processor time: {'; '.join(others)}"] if others else []
    return "\n".join([*lines, *([""] if failed or told else []), *failed, *told])


def _ratio(slow: Entry | None, fast: Entry) -> str:
    return str(ratio(slow, fast)) if slow else "–"


def _peak(entry: Entry) -> int:
    """On a GPU its memory counts, else resident memory."""
    return entry.device_peak_bytes or entry.peak_bytes


def _mfu(results: Results, entry: Entry) -> str:
    return f", MFU {results.utilization(entry):.1%}" if results.peak_flops else ""


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables of the files named on the command line."""
    if len(sys.argv) < 2:
        sys.exit("usage: python bench/report.py results.json …")
    found = [Results.read(Path(name)) for name in sys.argv[1:]]
    print(summary(found), *map(detail, found), sep="\n\n")


if __name__ == "__main__":
    main()

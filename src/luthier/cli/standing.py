"""A run's status for people: a table of all runs, or one run in detail."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from luthier.cli.show import table
from luthier.core.words import ago, duration, gigabytes, loss
from luthier.runs.state import State
from luthier.runs.status import Status
from luthier.watch.rules import CODES as OF_RUNS

STYLES: dict[State, str] = {
    "running": "bold green",
    "queued": "cyan",
    "silent": "bold yellow",
    "finished": "green",
    "failed": "bold red",
    "killed": "bold red",
}
"""Of a state; others are plain."""


def print_statuses(console: Console, every: Sequence[Status]) -> None:
    """One line for each run."""
    if not every:
        console.print("no run yet: luthier train R, or luthier launch R, begins one")
        return
    page = table("run", "state", "step", "loss", "validation", "tokens/s", "left", "saved", "moved")
    for each in every:
        left = duration(each.seconds_left) if each.seconds_left and each.state in ("running", "queued") else "–"
        cells = (f"{each.step:,}/{each.total:,}", loss(each.train_loss), loss(each.validation_loss), pace(each), left)
        page.add_row(each.name, state(each), *cells, str(each.checkpoint or "–"), ago(each.moved))
    console.print(page)


def print_status(console: Console, found: Status) -> None:
    """One run, a line for each thing that is known of it."""
    page = table("", "")
    page.show_header = False
    page.columns[1].justify = "left"
    for name, value in lines(found):
        page.add_row(name, value)
    console.print(page)


def lines(found: Status) -> Iterator[tuple[str, Text]]:
    """What is known of a run, by name."""
    where = f" on {found.host}" if found.host else ""
    yield "run", Text.assemble((found.name, "bold"), f"  {found.folder}")
    yield "state", Text.assemble(state(found), f"{where}, {ago(found.moved)}" + (f": {found.why}" if found.why else ""))
    if found.total or found.step:
        yield "step", Text(f"{found.step:,} of {found.total:,}, epoch {found.epoch:.2f}")
    if found.train_loss is not None or found.validation_loss is not None:
        gap = "" if found.gap is None else f", gap {found.gap:+.4f}"
        yield "loss", Text(f"{loss(found.train_loss)}, validation {loss(found.validation_loss)}{gap}")
    if found.tokens_per_second:
        yield "pace", Text(f"{pace(found)} tokens/s{device(found)}")
    if found.seconds_left:
        yield "left", Text(f"{duration(found.seconds_left)} of training")
    best = "" if found.best_value is None else f"; best: step {found.best_step} ({found.best_value:.4f})"
    yield "saved", Text((f"step {found.checkpoint}" if found.checkpoint else "nothing yet") + best)
    if found.restarts:
        yield "restarts", Text(str(found.restarts))
    if found.phase != "none":
        yield "ranks", Text(ranks(found))
    for finding in found.findings:
        if finding.severity != "note" or finding.code in OF_RUNS:
            yield finding.severity, Text(f"{finding.message} [{finding.code}]")
    if notes := sum(finding.severity == "note" and finding.code not in OF_RUNS for finding in found.findings):
        yield "notes", Text(f"{notes} of the plan; luthier plan shows them")


def state(found: Status) -> Text:
    """Its state; of one that runs, what rank 0 does, where that is not computing."""
    doing = "" if found.phase in ("none", "computing", "waiting") else f" ({found.phase})"
    return Text(found.state + doing, style=STYLES.get(found.state, ""))


def ranks(found: Status) -> str:
    """`0 computing, 1 waiting`; the step where a rank is in another one than rank 0."""
    if not found.ranks:
        return found.phase
    first = found.ranks[0].step
    return ", ".join(_rank(each.rank, each.phase, each.step, first) for each in found.ranks)


def device(found: Status) -> str:
    """Memory and use of the device, where they are known."""
    memory = [] if found.memory_bytes is None else [gigabytes(found.memory_bytes)]
    use = [] if found.device_utilization is None else [f"{found.device_utilization:.0%} busy"]
    return "".join(f", {each}" for each in (*memory, *use))


def pace(found: Status) -> str:
    """Tokens a second."""
    return "–" if found.tokens_per_second is None else f"{found.tokens_per_second:,.0f}"


def joined(parts: Iterable[str]) -> str:
    """`a · b`, without what is empty."""
    return " · ".join(filter(None, parts))


def _rank(rank: int, phase: str, step: int, first: int) -> str:
    return f"{rank} {phase}" + (f" (step {step})" if step != first else "")

"""A run's status for people: a table of all runs, or one run in detail."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from luthier.cli.show import table
from luthier.core.words import ago, duration, gap, gigabytes, loss
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
DISPENSABLE = ("epoch", "memory", "gap", "saved", "moved", "tokens/s", "loss", "reward")
"""Columns that a narrow terminal does without, in this order."""
OF_REWARDS = ("reward", "held out")
"""Columns that are there where a run's answers are rewarded."""


def print_statuses(console: Console, every: Sequence[Status]) -> None:
    """One line for each run, with as many columns as there is room for."""
    if not every:
        console.print("no run yet: luthier train R, or luthier launch R, begins one")
        return
    rows, without = [_cells(each) for each in every], list[str]()
    if all(each.reward is None for each in every):
        rows = [{column: cell for column, cell in row.items() if column not in OF_REWARDS} for row in rows]
    for name in DISPENSABLE:
        if _width(rows) <= console.width:
            break
        without.append(name)
        rows = [{column: cell for column, cell in row.items() if column != name} for row in rows]
    page = table(*rows[0])
    page.columns[list(rows[0]).index("findings")].justify = "left"
    for row in rows:
        page.add_row(*row.values())
    console.print(page)
    if without:
        console.print(f"a wider terminal shows {', '.join(without)} too; luthier status RUN, or --json, has all", style="dim")


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
    if found.reward is not None or found.held_out_reward is not None:
        yield "reward", Text(rewards(found))
    if found.train_loss is not None or found.validation_loss is not None:
        over = "" if found.gap is None else f", gap {gap(found.gap)}"
        yield "loss", Text(f"{loss(found.train_loss)}, validation {loss(found.validation_loss)}{over}")
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


def rewards(found: Status) -> str:
    """`0.71, held out 0.86 (0.81 … 0.91)`: of training prompts, and of validation rows with its interval."""
    ends = f" ({' … '.join(map(_reward, found.held_out_interval))})" if found.held_out_interval else ""
    return f"{_reward(found.reward)}, held out {_reward(found.held_out_reward)}{ends}"


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


def _cells(found: Status) -> dict[str, str | Text]:
    """A run's line, by column."""
    return {
        "run": found.name,
        "state": state(found),
        "step": f"{found.step:,}/{found.total:,}",
        "epoch": f"{found.epoch:.2f}",
        "loss": loss(found.train_loss),
        "validation": loss(found.validation_loss),
        "gap": gap(found.gap),
        "reward": _reward(found.reward),
        "held out": _reward(found.held_out_reward),
        "tokens/s": pace(found),
        "memory": "–" if found.memory_bytes is None else gigabytes(found.memory_bytes),
        "left": duration(found.seconds_left) if found.seconds_left else "–",
        "saved": str(found.checkpoint or "–"),
        "moved": ago(found.moved),
        "findings": ", ".join(found.alarms) or "–",
    }


def _reward(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _width(rows: Sequence[Mapping[str, str | Text]]) -> int:
    """Of a table, with two columns between cells."""
    return sum(2 + max(len(name), *(len(row[name]) for row in rows)) for name in rows[0])


def _rank(rank: int, phase: str, step: int, first: int) -> str:
    return f"{rank} {phase}" + (f" (step {step})" if step != first else "")

"""The page that `luthier plan` prints: steps, memory, time, money, what `auto` became, findings; and the page of all GPUs."""

from collections.abc import Sequence

from rich.console import Console

from luthier.cli.show import print_steps, table
from luthier.core.finding import Finding
from luthier.plan.check.words import duration, gigabytes
from luthier.plan.memory import Memory
from luthier.plan.offers import Offer, cheapest, fastest
from luthier.plan.plan import Plan
from luthier.plan.setup import SAID
from luthier.plan.speed import Range

STYLES = {"refuse": "bold red", "warn": "yellow", "note": "cyan"}


def print_plan(console: Console, plan: Plan) -> None:
    """One page."""
    task, survey, setup = plan.facts.task, plan.chosen.survey, plan.setup
    devices = f"{setup.layout.devices} × " if setup.layout.devices > 1 else ""
    console.print(f"{task.recipe.name}: {_parameters(task.shape.parameters)} parameters on {devices}{task.place.device.name}", style="bold")
    print_steps(console, plan.steps)
    replicas = setup.layout.data
    saved = f"{survey.shared_share:.0%} of all shared" if survey.shared_share else f"{survey.padding_share:.0%} padding"
    if plan.facts.data == "stated" and setup.micro_batch.packing == "off":
        saved = "and padding, which nobody knows before there is data"
    last = plan.steps.last_save_before_end
    console.print(
        f"{survey.micro_batches * plan.steps.per_epoch:,.0f} micro batches an epoch; "
        + (f"last save before the end at step {last}" if last else "no save before the end"),
        soft_wrap=True,
    )
    console.print(
        f"a step: {survey.mean('tokens') * replicas:,.0f} tokens, {survey.mean('supervised') * replicas:,.0f} trained on, {saved}; "
        f"{survey.micro_batches:.3g} micro batch{'' if survey.micro_batches == 1 else 'es'}"
        + (f" on each of {replicas} replicas" if replicas > 1 else ""),
        soft_wrap=True,
    )
    _print_memory(console, plan.chosen.memory)
    time = plan.time
    console.print(
        f"time {_hours(time.total)}: {duration(time.step)} a step, validations {duration(time.validation)}, saves {duration(time.saves)} "
        f"({time.rate.source})",
        markup=False,
        soft_wrap=True,
    )
    if plan.cost and plan.cost.high:
        console.print(f"cost {_dollars(plan.cost.mid)} ({_dollars(plan.cost.low)} … {_dollars(plan.cost.high)})", markup=False)
    for item in plan.resolved:
        if item.why != SAID:
            console.print(f"{item.path} = {item.value}: {item.why}", markup=False, soft_wrap=True)
    for other in plan.chosen.rejected:
        console.print(f"  rejected {other.value}: {other.why}", markup=False, soft_wrap=True)
    print_findings(console, plan.findings)


def print_offers(console: Console, offers: Sequence[Offer]) -> None:
    """Fits or not, hours, cost on every GPU, and what serving takes there; the cheapest and the fastest by name."""
    count = offers[0].plan.facts.task.place.count
    columns = ("memory GB", "needs", "fits", "time", "cost", "$ an hour", "serve GB", "tokens/s")
    page = table("GPU" if count == 1 else f"{count} GPUs", *columns)
    for column in page.columns:
        column.no_wrap = True
    for offer in offers:
        memory, cost, price = offer.plan.chosen.memory, offer.plan.cost, offer.device.price_per_hour
        page.add_row(
            offer.device.id,
            f"{memory.device_bytes / 1e9:.1f}",
            f"{memory.peak_bytes / 1e9:.1f}",
            "yes" if memory.fits else "no",
            duration(offer.plan.time.total.mid) if memory.fits else "",
            _dollars(cost.mid) if cost and memory.fits else "" if memory.fits is False else "no price",
            f"{price:.2f}" if price is not None else "",
            f"{offer.serving.total_bytes / 1e9:.1f}" + ("" if offer.serves else " (no)"),
            f"{offer.serving.tokens_per_second(offer.device.bandwidth):,.0f}",
        )
    console.print(page)
    dates = sorted({offer.device.price_date for offer in offers if offer.device.price_per_hour is not None})
    console.print(f"prices of {dates[0]} to {dates[-1]}; --json names their sources", markup=False)
    best, quickest = cheapest(offers), fastest(offers)
    if best and best.plan.cost:
        console.print(f"cheapest: {best.device.id}, {_dollars(best.plan.cost.mid)}", style="bold")
    if quickest:
        console.print(f"fastest: {quickest.device.id}, {_hours(quickest.plan.time.total)}", style="bold")
    else:
        console.print("it fits on none of them", style="bold red")


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Each with its severity, code and what would mend it: changes of the recipe, or a command."""
    for finding in findings:
        console.print(
            f"{finding.severity}: {finding.message} [{finding.code}]", style=STYLES[finding.severity], markup=False, soft_wrap=True
        )
        for change in finding.changes:
            console.print(f"    {change.path}={change.value}: {change.why}", markup=False, soft_wrap=True)
        if finding.fix:
            console.print(f"    {finding.fix}", markup=False, soft_wrap=True)
    if not findings:
        console.print("no findings", style="green")


def _print_memory(console: Console, memory: Memory) -> None:
    console.print(f"memory {gigabytes(memory.peak_bytes)} of {gigabytes(memory.device_bytes)}; at the peak, {memory.peak_at}:")
    for line in memory.lines:
        console.print(f"  {gigabytes(line.bytes):>9}  {line.name:<24} {line.formula}", markup=False, soft_wrap=True)


def _parameters(number: int) -> str:
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.01 else "< $0.01"


def _hours(total: Range) -> str:
    return f"{duration(total.mid)} ({duration(total.low)} … {duration(total.high)})"

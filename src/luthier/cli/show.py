"""What verbs print for people: tables of data, steps, scores and verdicts."""

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from luthier.evaluate.gate import Verdict
from luthier.evaluate.metrics import show
from luthier.evaluate.report import Report, Scores
from luthier.plan.steps import Steps
from luthier.runs.summary import DataSummary, Lengths
from luthier.score.intervals import Interval

BAR_WIDTH = 30
LINE = 160


def print_data(console: Console, summary: DataSummary) -> None:
    """Sources, what was kept and dropped and why, the splits with their groups, lengths, overlap."""
    names = {source.path: Path(source.path).name for source in summary.sources}
    for source in summary.sources:
        console.print(f"{names[source.path]}: {source.rows:,} rows, read as {source.format}", markup=False, soft_wrap=True)
    rows = summary.rows
    console.print(f"kept {rows.kept:,} of {rows.read:,} rows")
    for reason, number in sorted(rows.dropped.items(), key=lambda item: -item[1]):
        examples = "; ".join(rows.dropped_examples.get(reason, ()))
        for path, name in names.items():
            examples = examples.replace(path, name)
        console.print(f"  dropped {number:,}: {reason} ({examples})", markup=False, soft_wrap=True)
    console.print(_splits(summary))
    for split, cut in ((name, split.cut) for name, split in summary.splits.items() if split.cut.rows):
        console.print(f"{split}: max_length shortened {cut.rows:,} rows by {cut.tokens:,} tokens and cut {cut.answers:,} answers")
    if len(summary.groups) > 1:
        console.print(_groups(summary))
    console.print(f"{summary.supervised_share:.1%} of the training tokens are trained on; rows may have {summary.max_length:,} tokens")
    if not summary.template.prefix_stable:
        console.print("the chat template rewrites earlier turns: where it does, each assistant turn is a row of its own")
    for name, overlap in summary.overlap.items():
        console.print(f"{name} prompts that stand in train too: {overlap.exact:,} to the letter, {overlap.near:,} nearly")
    console.print(_histogram(summary.splits["train"].lengths))


def print_steps(console: Console, steps: Steps) -> None:
    """One line: rows, batch, steps, warm-up, validations, saves."""
    console.print(
        f"{steps.rows:,} rows, {steps.global_batch_size} a step: {steps.per_epoch:,} steps an epoch, {steps.total:,} in all, "
        f"warm-up {steps.warmup:,}; validation {_falls(steps.evaluations)}; checkpoint {_falls(steps.saves)}",
        soft_wrap=True,
    )


def print_scores(console: Console, scores: Scores) -> None:
    """Each task's score with its interval, overall and per group; loss, latency, speed, memory."""
    page = table("task", "metric", "score", "95 % interval", "rows", "cut")
    for name, task in scores.tasks.items():
        page.add_row(name, task.metric, f"{task.value:.1%}", f"{task.low:.1%} … {task.high:.1%}", f"{task.n:,}", f"{task.cut:,}")
        for group, share in task.groups.items():
            page.add_row(f"  {group}", "", f"{share.value:.1%}", f"{share.low:.1%} … {share.high:.1%}", f"{share.n:,}", "")
    console.print(f"{scores.subject}", style="bold", markup=False)
    console.print(page)
    if scores.loss:
        console.print(f"validation loss {scores.loss.value:.4f} over {scores.loss.tokens:,} tokens of {scores.loss.n:,} rows")
    if scores.latency:
        answer, first, token = scores.latency.answer, scores.latency.first_token, scores.latency.per_token
        console.print(
            f"one answer at a time: median {show(answer.p50.value, 's')}, 95th percentile {show(answer.p95.value, 's')}; "
            f"first token {_known(first.p50)}, each further {_known(token.p50)} (medians of {answer.p50.n})"
        )
    if scores.tokens_per_second:
        memory = f"; peak memory {show(scores.peak_memory_bytes, 'bytes')}" if scores.peak_memory_bytes else ""
        console.print(f"in batches {scores.tokens_per_second:,.0f} tokens/s{memory}")


def print_verdict(console: Console, verdict: Verdict) -> None:
    """The decision, its reasons, and what else should be known."""
    style = {"deploy": "bold green", "abort": "bold red"}.get(verdict.decision, "bold yellow")
    missing = f": {verdict.more_rows:,.0f} more rows needed" if verdict.more_rows and math.isfinite(verdict.more_rows) else ""
    console.print(f"verdict: {verdict.decision.replace('_', ' ')}{missing}", style=style)
    for reason in verdict.reasons:
        console.print(f"  {reason}", markup=False, soft_wrap=True)
    for finding in verdict.findings:
        console.print(f"  {finding.severity}: {finding.message} [{finding.code}]", markup=False, soft_wrap=True)


def print_answers(console: Console, base: Report, tuned: Report, rows: int = 3) -> None:
    """The first task's scores side by side, and real rows with both answers, of as many groups as there are."""
    for task, after in tuned.scores.tasks.items():
        for name, score in (("base", base.scores.tasks[task]), ("tuned", after)):
            console.print(
                f"{name:>8}: {task}.{score.metric} {score.value:6.1%}  (95 %: {score.low:.1%} … {score.high:.1%}, {score.n} rows)"
            )
        answered = list(zip(tuned.predictions[task], base.predictions[task], strict=True))
        first_of_group = {row.group: place for place, (row, _) in reversed(list(enumerate(answered)))}
        for place in sorted(first_of_group.values())[:rows]:
            row, untuned = answered[place]
            console.print(f"{row.origin} ({row.group})", style="bold", markup=False, soft_wrap=True)
            texts = {"asked": str(row.messages[-1]["content"]), "wanted": row.reference, "base": untuned.answer, "tuned": row.answer}
            for label, text in texts.items():
                console.print(f"{label:>8}: {_one_line(text)}", markup=False, soft_wrap=True)


def _known(time: Interval) -> str:
    return show(time.value, "s") if time.n else "not known"


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LINE else flat[: LINE - 2] + " …"


def _falls(at: tuple[int, ...]) -> str:
    if not at:
        return "never"
    return "at step " + ", ".join(map(str, at)) if len(at) <= 4 else f"at step {at[0]}, {at[1]} … {at[-1]} ({len(at)} times)"


def _splits(summary: DataSummary) -> Table:
    page = table("split", "examples", "share", "wanted", "rows", "tokens", "trained on", "p50", "p95", "max")
    for name, split in summary.splits.items():
        page.add_row(
            name,
            f"{split.examples:,}",
            f"{split.obtained_share:.1%}",
            f"{split.wanted_share:.1%}",
            *(f"{number:,}" for number in (split.rows, split.tokens, split.supervised_tokens)),
            *(f"{length:,}" for length in (split.lengths.p50, split.lengths.p95, split.lengths.max)),
        )
    return page


def _groups(summary: DataSummary) -> Table:
    """Examples and obtained share per group, under the wanted share: by hash they differ by chance; caps do not count."""
    page = table("group", "kept", *(f"{name} (wanted {split.wanted_share:.0%})" for name, split in summary.splits.items()))
    for group, kept in sorted(summary.groups.items(), key=lambda item: -item[1]):
        splits = summary.splits.values()
        cells = (f"{split.groups.get(group, 0):,} ({split.group_shares.get(group, 0.0):.0%})" for split in splits)
        page.add_row(group, f"{kept:,}", *cells)
    return page


def _histogram(lengths: Lengths) -> str:
    """Training rows by length, with the share that a `max_length` of so many tokens covers."""
    highest = max(lengths.histogram.values(), default=1)
    lines = ["training rows by tokens, and the share that such a max_length covers"]
    for edge, rows in lengths.histogram.items():
        lines.append(f"  ≤ {edge:>6,} {'█' * round(BAR_WIDTH * rows / highest):<{BAR_WIDTH}} {rows:>7,}  {lengths.coverage[edge]:.1%}")
    return "\n".join(lines)


def table(first: str, *numbers: str) -> Table:
    """A table without lines, its first column left, the others right."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table

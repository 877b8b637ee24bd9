"""The verb review."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier import flow
from luthier.cli.output import Json, people, print_json, say
from luthier.cli.watching import RunName
from luthier.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.review.results import Preference, Results
    from luthier.score.intervals import Interval


def review(
    run: RunName,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Draw so many rows; else the recipe's review.rows.")] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: one that is free.")] = 0,
    results: Annotated[bool, typer.Option("--results", help="Print what was said so far, and ask nobody.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write it: the ratings as .csv or .jsonl, what was preferred as .dpo.jsonl.")
    ] = None,
    json: Json = False,
) -> None:
    """Ask people in the browser which answers are better, base's or the tuned model's, without saying whose they are. Every click is kept;
    Ctrl-C ends the page, and the next call goes on."""
    if results or export:
        _tell(run, export, json=json)
        return
    if json:
        raise UsageError("the page prints no JSON", change="--results --json prints what was said")
    from luthier.core.signals import left_by_ctrl_c
    from luthier.web.serve import of_review, serve

    asked = flow.review(run, rows or "recipe")
    draw = asked.draw
    say(f"{len(draw.pairs)} of {draw.num_rows} rows, {draw.num_same} of which both answer alike; the page, for who has this link:")
    with left_by_ctrl_c():
        serve(port, typer.echo, of_review(asked))


def _tell(run: str, export: Path | None, *, json: bool) -> None:
    console = people(json)
    found = flow.reviewed(run)
    _print(console, found)
    told = found.to_json()
    if export:
        written = flow.write_ratings(run, export)
        told["export"] = {"lines": written.num, "tied": written.num_tied, "flagged": written.num_flagged}
        left = f"; left out: {written.num_tied} ties, {written.num_flagged} flagged" if export.name.endswith(".dpo.jsonl") else ""
        console.print(f"{export}: {written.num} lines{left}", markup=False, soft_wrap=True)
    if json:
        print_json(told)


def _print(console: Console, found: Results) -> None:
    """Who rated how much; preferences, of groups too; scores; agreement."""
    who = ", ".join(f"{name} {num}" for name, num in found.reviewers.items()) or "nobody"
    console.print(f"rated by {who}; {found.num_flagged} rows flagged", markup=False, soft_wrap=True)
    if found.num_stale:
        console.print(f"{found.num_stale} ratings are of answers that the run gave before it was evaluated anew")
    for name, preference in {"all": found.preference, **found.groups}.items():
        console.print(f"  {name}: {_preferred(preference)}", markup=False, soft_wrap=True)
    for name, criterion in found.criteria.items():
        difference = f"{criterion.difference.value:+.2f} ({criterion.difference.low:+.2f} … {criterion.difference.high:+.2f})"
        scores = f"tuned {_score(criterion.tuned)}, base {_score(criterion.base)}, difference {difference}, {criterion.tuned.n} rows"
        console.print(f"  {name}, 1 … 5: {scores}" if criterion.tuned.n else f"  {name}: not scored", markup=False, soft_wrap=True)
    for name, agreement in found.agreement.items():
        alpha = "not known: too few, or all alike" if agreement.alpha is None else f"{agreement.alpha:.2f}"
        console.print(f"  agreement on {name} (Krippendorff's alpha): {alpha} ({agreement.num_shared} judged by several)", markup=False)


def _preferred(found: Preference) -> str:
    share = found.share
    if not share.n:
        return "no preference yet"
    return (
        f"the tuned model's answer is preferred on {share.value:.1%} ({share.low:.1%} … {share.high:.1%}, n = {share.n}): "
        f"{found.won} won, {found.tied} tied, {found.lost} lost"
    )


def _score(found: Interval) -> str:
    return f"{found.value:.2f} ({found.low:.2f} … {found.high:.2f})"

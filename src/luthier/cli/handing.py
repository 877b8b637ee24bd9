"""Verbs of handing over: export, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from luthier import flow
from luthier.cli.output import Json, people, print_json, progress
from luthier.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.export.verify import Apart, Verification

FORMS = (
    "merged: the adapter in the base's weights, for plain transformers; gguf: that as one file for llama.cpp and Ollama; "
    "vllm: what vLLM loads, with a compose file and a systemd unit."
)
Run = Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")]


def export(
    run: Run,
    to: Annotated[Literal["merged", "gguf", "vllm"], typer.Option("--to", help=FORMS)],
    out: Annotated[Path | None, typer.Option("--out", help="Write this folder in place of runs/RUN/FORM.")] = None,
    json: Json = False,
) -> None:
    """Hand a run's model over in a form that others load, compared with what was trained before it is done."""
    console = people(json)
    try:
        exported = flow.export(run, out or "run", progress(), to)
    except flow.VerificationError as error:
        print_verification(console, error.verification)
        if json:
            print_json({"verification": error.verification.to_json()})
        raise
    print_verification(console, exported.verification)
    console.print(f"written to {exported.folder}", soft_wrap=True, markup=False)
    if json:
        print_json(exported.to_json())


def verify(
    run: Run,
    merged: Annotated[Path | None, typer.Option("--merged", help="Compare this folder; else runs/RUN/merged, where there is one.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="Compare a server, too: vLLM's, or `luthier serve`'s.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model's name there; else the run's.")] = None,
    token_env: Annotated[str, typer.Option("--token-env", help="The environment variable with its token.")] = "LUTHIER_TOKEN",
    json: Json = False,
) -> None:
    """Compare a run's live adapter with its base, its merged model and a server, token for token; 1 where it is not what was trained."""
    if model and not url:
        raise UsageError("--model is a name on a server", change="give --url, too")
    served: flow.Address | Literal["none"] = flow.Address(url=url, model=model or "run", token_env=token_env) if url else "none"
    verification = flow.verify(run, merged or "run", progress(), served)
    print_verification(people(json), verification)
    if json:
        print_json(verification.to_json())
    raise typer.Exit(0 if verification.passed else 1)


def print_verification(console: Console, verification: Verification) -> None:
    """The differences in nats a token, and what of them is wrong."""
    from luthier.cli.show import table

    page = table("the live adapter and", "mean |difference|", "largest")

    def line(name: str, apart: Apart) -> None:
        page.add_row(name, f"{apart.mean:.3g}", f"{apart.max:.3g}")

    line("itself, padded in batches (noise)", verification.floor)
    line("its base", verification.change)
    for name, apart in verification.apart.items():
        line(name, apart)
    console.print(f"log-probabilities of {verification.tokens:,} tokens of {verification.rows:,} rows, in nats")
    console.print(page)
    if verification.passed:
        compared = (
            " = ".join(("trained", *verification.apart)) if verification.apart else "the adapter changes its base; nothing is merged yet"
        )
        console.print(f"{compared}; a mean of {verification.allowed:.3g} is allowed", style="bold green", markup=False)
    for failure in verification.failures:
        console.print(f"  {failure}", style="bold red", markup=False, soft_wrap=True)

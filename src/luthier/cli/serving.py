"""Verbs of a model that answers: serve, chat."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from luthier import flow
from luthier.cli.output import progress, say, tell
from luthier.cli.words import OVERRIDE
from luthier.core.errors import LuthierError, UsageError

if TYPE_CHECKING:
    from luthier.recipe.serving import Serving
    from luthier.serve.dialogue import Dialogue

SUBJECTS = (
    "Finished runs over one base, or one model: a folder, a hub id, demo. With serving.engine=vllm one run or model, or the model of a "
    "recipe's file, is served by vLLM, and serving.key=value changes how."
)
READ = ("serving.engine", "serving.port", "serving.options.adapters_from")
"""What Luthier's own engine heeds of the section."""
COMMANDS = "/base: what the base answers to that · /system TEXT: another system prompt · /reset: forget what was said · Ctrl-D ends it"


def serve(
    words: Annotated[list[str], typer.Argument(metavar="RUN|MODEL", help=SUBJECTS)],
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="0: one that is free; else serving.port.")] = None,
    host: Annotated[str, typer.Option("--host", help="Where it listens; 0.0.0.0 is every network of this machine.")] = "127.0.0.1",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="The token is in this file, or is written there once. Else a new one each time.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds that a request may take.")] = 600.0,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare what is served with what was trained.")] = False,
) -> None:
    """Answer OpenAI's clients, at /v1/chat/completions and the rest. Ready once what is served was compared with what was trained."""
    from luthier.core.signals import left_by_ctrl_c

    changes = tuple(word for word in words if OVERRIDE.match(word) and not Path(word).exists())
    names = [word for word in words if word not in changes]
    if not names:
        raise UsageError("a run or a model is wanted", change="write: luthier serve RUN [serving.key=value ...]")
    serving = flow.serving_of(names[0], changes)
    opening = flow.Opening(host=host, port=serving.port if port is None else port, token_file=token_file or "none", seconds=timeout)
    with left_by_ctrl_c(SIGTERM):
        if serving.engine == "embedded":
            _refuse_unread(changes)
            flow.serve(names, replace(opening, adapters_from=_folder(serving)), _tell, progress(), verified=not no_verify)
        elif len(names) > 1:
            raise UsageError("vLLM serves one run, or one model", change="leave one, or set serving.engine=embedded")
        else:
            flow.serve_vllm(names[0], changes, opening, _tell_vllm(shown=token_file is None), progress(), verified=not no_verify)


def chat(
    name: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A finished run, or a model: a folder, a hub id, demo.")],
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=2, help="0: the likeliest answer, as it was evaluated.")] = 0.0,
    system: Annotated[str, typer.Option("--system", help="A system prompt.")] = "",
    base: Annotated[bool, typer.Option("--base", help="Show what the base answers beside each answer.")] = False,
) -> None:
    """Talk with a run in the terminal; /base shows what its base answers to the same."""
    from luthier.core.signals import left_by_ctrl_c

    with left_by_ctrl_c(), flow.talking(name, progress(), temperature=temperature) as dialogue:
        dialogue.system = system
        say(COMMANDS)
        for line in _lines():
            try:
                _answer(dialogue, line, both=base)
            except LuthierError as error:  # such as a dialogue that is too long, or a template that takes no system prompt
                tell(str(error))


def _answer(dialogue: Dialogue, line: str, *, both: bool) -> None:
    command, _, rest = line.partition(" ")
    match command:
        case "/base":
            _print("base: ", dialogue.base_says())
        case "/reset":
            dialogue.reset()
        case "/system":
            dialogue.system = rest.strip()
            dialogue.reset()
        case _ if command.startswith("/"):
            raise UsageError(f"there is no {command}", change=COMMANDS)
        case _:
            _print("", dialogue.say(line))
            if both:
                _print("base: ", dialogue.base_says())


def _print(who: str, pieces: Iterable[str]) -> None:
    """An answer as it is written."""
    for number, piece in enumerate(pieces):
        sys.stdout.write(piece if number else who + piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _lines() -> Iterator[str]:
    """What is typed, or comes through a pipe; empty lines say nothing."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        import readline  # noqa: F401  # arrows and history in input()
    while True:
        try:
            line = input("> " if at_terminal else "")
        except EOFError:
            return
        if line.strip():
            yield line


def _folder(serving: Serving) -> Path | Literal["nowhere"]:
    """Where adapters may be loaded from; raises UsageError for what is no folder, before anything is loaded."""
    from luthier.recipe.options import EmbeddedOptions

    options = EmbeddedOptions.model_validate(serving.options)
    if not options.adapters_from:
        return "nowhere"
    if not (folder := Path(options.adapters_from)).is_dir():
        raise UsageError("there is no such folder", where=f"serving.options.adapters_from {folder}", change="make it first")
    return folder


def _refuse_unread(changes: tuple[str, ...]) -> None:
    """Raise UsageError for what Luthier's own engine would not heed."""
    if unread := [change for change in changes if change.partition("=")[0] not in READ]:
        raise UsageError(f"the embedded engine serves a run by its own recipe, which {unread[0]} would not change", change="leave it out")


def _tell_vllm(*, shown: bool) -> Callable[[flow.Answering], None]:
    """As `_tell`, once it is ready."""

    def tell_it(answering: flow.Answering) -> None:
        typer.echo(f"{answering.url}/v1" + (f"\ntoken {answering.token}" if shown else ""))
        sys.stdout.flush()
        say(f"ready: {', '.join(answering.models)}; vLLM prints into {answering.log}; Ctrl-C ends it")

    return tell_it


def _tell(standing: flow.Standing) -> None:
    """The address and, once, the token on stdout, for people and scripts; that it is ready on stderr."""
    if not standing.models:
        typer.echo(f"{standing.url}" + (f"\ntoken {standing.token}" if standing.token else ""))
        sys.stdout.flush()
    else:
        say(f"ready: {', '.join(standing.models)}; Ctrl-C ends it")

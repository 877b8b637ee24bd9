"""`luthier`: the verbs, and how every one of them ends."""

import sys
from typing import Annotated, NoReturn

import typer

from luthier import __version__
from luthier.cli import data, planning, proof, quickstart, training
from luthier.cli.output import tell
from luthier.core.environment import settle
from luthier.core.errors import LuthierError

INTERRUPTED = 130  # what a shell reports of a process that Ctrl-C ended, and what typer makes of it

app = typer.Typer(name="luthier", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for verb in (quickstart.quickstart, planning.init, data.prepare, data.inspect, planning.plan, training.train, proof.evaluate, proof.decide):
    app.command()(verb)


@app.callback(invoke_without_command=True)
def luthier(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback; may stand anywhere.")] = False,
) -> None:
    """Fine-tune open chat models: know the outcome before the run, train exactly, prove the result."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line. An error becomes one message and its exit code: 1 failed, 2 wrong call, recipe or data, 3 refused."""
    settle(sys.argv[1:])
    debug = "--debug" in sys.argv
    try:
        app([word for word in sys.argv[1:] if word != "--debug"])
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            tell("interrupted; the same command goes on where it stopped")
        raise
    except LuthierError as error:
        _end(error, str(error), error.exit_code, debug)
    except Exception as error:
        _end(error, f"{type(error).__name__}: {error}\n  this is a fault of Luthier; `luthier --debug …` shows where", 1, debug)


def _end(error: Exception, message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        raise error
    tell(message)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""`luthier`: the verbs, and how every one of them ends."""

import sys
import traceback
from typing import Annotated, NoReturn

import typer

from luthier import __version__
from luthier.cli import (
    checking,
    comparing,
    data,
    handing,
    health,
    pages,
    planning,
    proof,
    quickstart,
    reviewing,
    serving,
    sweeping,
    training,
    watching,
)
from luthier.cli.output import print_json, say, tell
from luthier.core.environment import settle
from luthier.core.errors import LuthierError, PlanRefused
from luthier.core.redact import redact
from luthier.core.signals import Interrupted, ending_at_once

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed; 2 the call, the recipe or the data is wrong; 3 the plan refuses. decide and quickstart: 0 deploy, "
    "10 iterate, 11 abort, 12 not enough data. 130, 143, 138, 129: stopped by Ctrl-C, SIGTERM, SIGUSR1, a closed terminal; a run is "
    "saved then, and the same command goes on."
)

app = typer.Typer(
    name="luthier",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (
    quickstart.quickstart,
    planning.init,
    data.prepare,
    data.inspect,
    checking.check,
    planning.plan,
    training.train,
    training.rl,
    training.launch,
    watching.status,
    watching.watch,
    watching.logs,
    watching.save,
    watching.stop,
    proof.evaluate,
    proof.decide,
    reviewing.review,
    comparing.compare,
    sweeping.sweep,
    handing.export,
    handing.verify,
    serving.serve,
    serving.chat,
    pages.report,
    pages.ui,
    health.doctor,
):
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
    """Run the command line. An error becomes one message and its exit code: 1 failed, 2 wrong call, recipe or data, 3 refused.

    A signal that asks to end becomes what a shell reports of it: 128 and its number. With --json both it and a refusal are an object.
    """
    settle(sys.argv[1:])
    debug, json = ("--debug" in sys.argv), ("--json" in sys.argv)
    try:
        with ending_at_once():
            app([word for word in sys.argv[1:] if word != "--debug"])
    except Interrupted as ended:
        say(ended.told)
        if json:
            print_json({"interrupted": ended.to_json()})
        sys.exit(ended.exit_code)
    except PlanRefused as error:
        if json:
            print_json({"findings": [finding.to_json() for finding in error.findings]})
        _end(error, str(error), error.exit_code, debug)
    except LuthierError as error:
        _end(error, str(error), error.exit_code, debug)
    except Exception as error:
        _end(error, _told(error), 1, debug)


def _told(error: Exception) -> str:
    """An error that nobody expected, in words: its cause and what mends it, where it is a known failure of machine or libraries."""
    from luthier.watch.failures import explain

    said, known = f"{type(error).__name__}: {error}", explain(error)
    if known == "unknown":
        return f"{said}\n  this is a fault of Luthier; `luthier --debug …` shows where"
    changes = [f"{change.path}={change.value}: {change.why}" for change in known.changes]
    return "\n  ".join([said, f"{known.message} [{known.code}]", known.fix, *changes])


def _end(error: Exception, message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    else:
        tell(message)
    sys.exit(code)


if __name__ == "__main__":
    main()

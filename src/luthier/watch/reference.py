"""docs/guide/trouble.md out of the checks' docstrings and the table of failures: `python -m luthier.watch.reference` prints it."""

import inspect
import sys

from luthier.watch.failures import Failure, table
from luthier.watch.health import AREAS

HEAD = """\
<!-- Made from watch/failures.toml and the checks' docstrings: make docs -->
# When something is wrong

    luthier doctor                     # this machine, and a tiny training whose losses are known
    luthier doctor --no-canary         # without the training: a second
    luthier doctor --json              # the same as one object: findings, and what is fine
    luthier doctor --write-unit PATH   # also write a systemd unit that sets persistence mode of the GPUs at boot

It prints what it finds, the gravest first, each with the command that mends it, and then what the machine is, a line each. *refuse*: a
run cannot work so, and the exit code is 1; *warn*: it works, and badly; *note*: worth knowing. Nothing is imported that might be broken,
and nothing leaves the machine.

**The canary** trains an adapter on the demo base for ten steps, on fixed rows, with dropout, in float32 and, where the device computes
it, in bfloat16. The losses must equal those in `train/canary.json` (relative: float32 2e-5, bfloat16 1e-2). Other instruction sets, thread
counts and engines stay far below that; a learning rate that is wrong by 0.1 % does not. It runs in a process of its own: where that
crashes or hangs, that is what is found. No GPU could be had when it was recorded: on one, its losses are compared with the processor's,
and nobody has tried it yet.

## What doctor looks at
"""
MIDDLE = """
Of the canary, besides: `canary-deviates` and `canary-failed` (refuse), `fused-layers-off` (warn: they do not give what the model's own
layers give, which take their place), `no-kernels` (warn: there is no C compiler, so that a processor trains slower).

## Failures that are known

An error that ends a command is looked up here, and so is one that ends a run, whose `events.jsonl` then tells it as a finding. *refuse*:
the same run fails the same way until something is changed. *warn*: begun again from its last checkpoint it may well pass.
"""


def page() -> str:
    """The page as Markdown."""
    lines = [HEAD]
    for area in AREAS:
        lines += [f"**{area.name}**\n", "| finding | when |", "|---|---|"]
        lines += [f"| {check.__name__.replace('_', '-')} | {inspect.getdoc(check)} |" for check in area.checks]
        lines.append("")
    return "\n".join([*lines, MIDDLE, *map(_section, table())])


def _section(failure: Failure) -> str:
    seen, changes = failure.recorded[0].splitlines()[0], [f"- `{change.path}={change.value}`: {change.why}" for change in failure.changes]
    told = [f"**{failure.severity}.** {failure.cause}.", f"{failure.fix}.", "\n".join(changes), f"Source: {failure.source}."]
    return f"### {failure.code}\n\n    {seen}\n\n" + "\n\n".join(filter(None, told)) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())

"""Verbs of the machine: doctor."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from luthier.cli.output import Json, people, print_json
from luthier.flow import health

BROKEN = 1


def doctor(
    canary: Annotated[bool, typer.Option("--canary/--no-canary", help="Run a tiny training whose losses are known.")] = True,
    write_unit: Annotated[
        Path | None, typer.Option("--write-unit", metavar="PATH", help="Write a systemd unit that sets persistence mode at boot.")
    ] = None,
    json: Json = False,
) -> None:
    """Look at this machine: devices, versions, disk, environment, arithmetic. Exit code 1: something is broken."""
    from luthier.cli.page import print_findings

    console = people(json)
    if write_unit:
        unit = health.write_unit(write_unit)
        install = f"sudo cp {quote(str(unit))} /etc/systemd/system/ && sudo systemctl enable --now {quote(unit.name)}"
        console.print(f"written: {unit}; then: {install}", markup=False, soft_wrap=True)
    seen = health.doctor(canary=canary)
    print_findings(console, seen.findings)
    for line in seen.fine:
        console.print(line, style="green", markup=False, soft_wrap=True)
    if json:
        print_json(seen.to_json())
    if seen.broken:
        raise typer.Exit(BROKEN)

"""The machine's health: every check of every area, the gravest finding first, and a line for each area that is well."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.core.finding import Finding, Severity
from luthier.watch import gpus, host, software
from luthier.watch.machine import Check, Machine

GRAVITY: tuple[Severity, ...] = ("refuse", "warn", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Checks that belong together, and what is said of them where they find nothing grave."""

    name: str
    checks: tuple[Check, ...]
    describe: Callable[[Machine], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What is found, the gravest first, and what is as it should be, a line each."""

    findings: tuple[Finding, ...]
    fine: tuple[str, ...]

    @property
    def broken(self) -> bool:
        """Whether anything is found that a run cannot work with."""
        return any(finding.severity == "refuse" for finding in self.findings)

    def and_then(self, other: "Health") -> "Health":
        """Both together."""
        found = sorted((*self.findings, *other.findings), key=lambda finding: GRAVITY.index(finding.severity))
        return Health(findings=tuple(found), fine=(*self.fine, *other.fine))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"findings": [finding.to_json() for finding in self.findings], "fine": list(self.fine)}

    @classmethod
    def from_json(cls, text: str) -> "Health":
        """What another process wrote of `to_json`."""
        from pydantic import TypeAdapter  # 50 ms, which only the reader of such a text waits for

        return TypeAdapter(Health).validate_json(text)


AREAS = (
    Area(name="GPUs", checks=gpus.CHECKS, describe=gpus.describe),
    Area(name="Processor, memory, disk", checks=host.CHECKS, describe=host.describe),
    Area(name="Versions and environment", checks=software.CHECKS, describe=software.describe),
)


def examine(machine: Machine) -> Health:
    """What is wrong with a machine, and what it is."""
    found = tuple(finding for area in AREAS for check in area.checks for finding in check(machine))
    fine = tuple(line for area in AREAS for line in area.describe(machine))
    return Health(findings=(), fine=()).and_then(Health(findings=found, fine=fine))

"""Finding, the one currency of preflight, monitor and gate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["refuse", "warn", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One recipe change that would help: set `path` (dotted key) to `value`, and why."""

    path: str
    value: str | int | float | bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One observation: a stable code, how grave, a sentence, the numbers behind it, what would mend it."""

    code: str
    severity: Severity
    message: str
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    fix: str = ""
    """The command or act that mends it, where that is not a matter of the recipe."""

    def to_json(self) -> dict[str, Any]:
        """The finding as plain JSON values; `fix` only where there is one."""
        values = asdict(self)
        return values if self.fix else {name: value for name, value in values.items() if name != "fix"}

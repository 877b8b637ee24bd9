"""Known failures: from what an error or a log says to its cause and what mends it. The table is failures.toml."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from luthier.core.finding import Change, Finding, Severity

TABLE = Path(__file__).with_name("failures.toml")
LONGEST_LINE, LONGEST_TEXT = 2_000, 200_000
"""Characters that are looked at, of a line and of the end of a log: what is searched may come from anywhere."""
SHOWN = 300
"""Characters of the line that are kept as evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One row of the table; failures.toml says what the fields are."""

    code: str
    severity: Severity
    pattern: re.Pattern[str]
    cause: str
    fix: str
    changes: tuple[Change, ...]
    source: str
    recorded: tuple[str, ...]

    def finding(self, match: re.Match[str]) -> Finding:
        """The finding, with the line that was met and what its groups name."""
        named = {name: value for name, value in match.groupdict().items() if value is not None}
        evidence = {**named, "said": match.string.strip()[:SHOWN]}
        return Finding(code=self.code, severity=self.severity, message=self.cause, evidence=evidence, changes=self.changes, fix=self.fix)


@cache
def table() -> tuple[Failure, ...]:
    """Every known failure, the narrower before the wider."""
    return tuple(map(_failure, tomllib.loads(TABLE.read_text(encoding="utf-8"))["failure"]))


def explain(failure: BaseException | str) -> Finding | Literal["unknown"]:
    """Cause and fix of an error, or of the end of a process's log; `unknown` where the table has nothing like it.

    Of an error, what it was raised from is looked at too: outermost first, since that one knows more of what was going on.
    """
    for text in [failure] if isinstance(failure, str) else _said(failure):
        lines = [line[:LONGEST_LINE] for line in text[-LONGEST_TEXT:].splitlines()]
        for known in table():
            if match := next(filter(None, map(known.pattern.search, lines)), None):
                return known.finding(match)
    return "unknown"


def _said(error: BaseException) -> Iterator[str]:
    """`Type: message` of an error and of those that it came from."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield f"{type(following).__name__}: {following}"
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _failure(row: Mapping[str, Any]) -> Failure:
    return Failure(
        code=row["code"],
        severity=row["severity"],
        pattern=re.compile(row["pattern"]),
        cause=row["cause"],
        fix=row["fix"],
        changes=tuple(Change(**change) for change in row.get("changes", ())),
        source=row["source"],
        recorded=tuple(row["recorded"]),
    )

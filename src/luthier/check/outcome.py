"""What a self-test found."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One self-test: the fault that it looks for, whether it is there, what was compared, and what to do where it is."""

    fault: str
    """As it would be seen: `rows of a pack see each other`."""
    state: State
    compared: str
    change: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


def judged(fault: str, wrong: Sequence[str], compared: str, change: str) -> Outcome:
    """A pass, or a failure that shows the first of what is wrong and says how much more there is."""
    if not wrong:
        return Outcome(fault=fault, state="pass", compared=compared)
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return Outcome(fault=fault, state="fail", compared=f"{wrong[0]}{more} ({compared})", change=change)


def beside(fault: str, why: str) -> Outcome:
    """Nothing to look at here."""
    return Outcome(fault=fault, state="not applicable", compared=why)

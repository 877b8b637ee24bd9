"""Every failure that a user can be shown, with the exit code it ends in."""

from luthier.core.finding import Finding
from luthier.core.redact import redact


class LuthierError(Exception):
    """What went wrong, where, and what to change; printed without a traceback. What a row, a recipe or a library told is redacted."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", change: str = "") -> None:
        self.what, self.where, self.change = (redact(_printable(text)) for text in (what, where, change))
        super().__init__(self.what)

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        change = f"\n  {self.change}" if self.change else ""
        return f"{where}{self.what}{change}"


class UsageError(LuthierError):
    """The call is wrong: an unknown verb, run or option."""

    exit_code = 2


class RecipeError(LuthierError):
    """The recipe is wrong; `where` is file:line and the key."""

    exit_code = 2


class DataError(LuthierError):
    """The data is wrong; `where` is file:line and the field."""

    exit_code = 2


class PlanRefused(LuthierError):
    """The recipe asks for what cannot work on this machine or in this version."""

    exit_code = 3

    def __init__(self, what: str, *, where: str = "", change: str = "", findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(what, where=where, change=change)
        message = f"{self.where}: {self.what}" if self.where else self.what
        self.findings = findings or (Finding(code="refused", severity="refuse", message=message, fix=self.change),)
        """Those that refuse it; one made of its own words where it is no finding that does."""


class ModelError(LuthierError):
    """A model, tokenizer or adapter could not be found, or does not fit what was asked of it."""


class RunError(LuthierError):
    """A run stopped, or its folder is not what it should be."""


class NonFiniteError(RunError):
    """Loss or gradient was not finite; the update was not applied."""


def _printable(text: str) -> str:
    """Half a surrogate pair, from a row or a file's name, as `\\ud800`: it could be neither written nor printed."""
    return text.encode("utf-8", "backslashreplace").decode()

"""What stands on the command line beside options: one subject, and overrides, `key=value` or `@FILE`, anywhere among it."""

import re
from dataclasses import dataclass
from pathlib import Path

from luthier.core.errors import UsageError

OVERRIDE = re.compile(r"@|[A-Za-z_][\w.]*=", re.ASCII)


@dataclass(frozen=True, slots=True)
class Words:
    """The subject (a recipe, run, model …) and the overrides, in the order given."""

    subject: str
    overrides: tuple[str, ...]


def split_words(words: list[str], what: str) -> Words:
    """Tell overrides from the subject; an existing file is a subject whatever its name. UsageError unless there is exactly one."""
    overrides = tuple(word for word in words if OVERRIDE.match(word) and not Path(word).exists())
    subjects = [word for word in words if word not in overrides]
    if len(subjects) != 1:
        found = f"found {', '.join(map(repr, subjects))}" if subjects else "found none"
        raise UsageError(f"one {what} is wanted; {found}", change=f"write: luthier VERB {what.upper()} [key=value ...] [@FILE]")
    return Words(subjects[0], overrides)

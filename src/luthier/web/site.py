"""The site's runs and templates: what every view starts from."""

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from jinja2 import Environment

from luthier import flow
from luthier.core.errors import UsageError
from luthier.core.redact import redact
from luthier.recipe.schema import RUN_NAME
from luthier.report.page import templates
from luthier.runs.store import RunFolder
from luthier.watch.series import Series

HERE = Path(__file__).parent
KEPT = 8
"""Runs whose curves are kept in memory: 19 MB each where it has 200,000 steps."""


class NoRun(UsageError):
    """The address names no run of this folder."""


@dataclass(frozen=True, slots=True)
class Site:
    """The folder of runs that is shown."""

    root: Path
    environment: Environment = field(default_factory=lambda: templates(HERE / "templates"))
    of_rows: Environment = field(default_factory=lambda: templates(HERE / "templates", hides=False))
    _read: OrderedDict[str, Series] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def run(self, name: str) -> RunFolder:
        """The run of this name; raises NoRun. A name never leaves the folder."""
        if not RUN_NAME.fullmatch(name) or not (self.root / name / "recipe.yaml").is_file():
            raise NoRun(f"no run called {name!r:.80} in {self.root}")
        return RunFolder(self.root / name)

    def series(self, run: RunFolder) -> Series:
        """What the run has measured, read on from where it was read to last."""
        with self._lock:
            before = self._read.pop(run.name, Series())
        found = flow.series(str(run.path), before)
        with self._lock:
            self._read[run.name] = found
            while len(self._read) > KEPT:
                self._read.popitem(last=False)
        return found

    def page(self, template: str, **given: Any) -> str:
        """A page, or a part of one: escaped, and without secrets."""
        return redact(self.environment.get_template(template).render(**given))

    def row_page(self, template: str, **given: Any) -> str:
        """A page that shows rows as they are, as `luthier inspect` does: that is its purpose."""
        return self.of_rows.get_template(template).render(**given)

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
from luthier.runs.status import Status
from luthier.runs.store import RunFolder
from luthier.watch.seen import Seen

HERE = Path(__file__).parent
KEPT = 8
"""Runs whose curves are kept in memory: 19 MB each where it has 200,000 steps."""


class NoRun(UsageError):
    """The address names no run of this folder."""


@dataclass(slots=True)
class Site:
    """The folder of runs that is shown."""

    root: Path
    environment: Environment = field(default_factory=lambda: templates(HERE / "templates"))
    of_rows: Environment = field(default_factory=lambda: templates(HERE / "templates", hides=False))
    _opened: OrderedDict[str, Seen] = field(default_factory=OrderedDict)
    _listed: dict[str, Seen] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def run(self, name: str) -> RunFolder:
        """The run of this name; raises NoRun. A name never leaves the folder."""
        if not RUN_NAME.fullmatch(name) or not (self.root / name / "recipe.yaml").is_file():
            raise NoRun(f"no run called {name!r:.80} in {self.root}")
        return RunFolder(self.root / name)

    def seen(self, name: str) -> Seen:
        """The run of this name, as it was seen last, for a page of its own; raises NoRun."""
        run = self.run(name)
        with self._lock:
            found = self._opened[name] = self._opened.pop(name, Seen(run=run))
            while len(self._opened) > KEPT:
                self._opened.popitem(last=False)
        return found

    def statuses(self) -> list[Status]:
        """Where all runs stand."""
        with self._lock:
            runs = self._listed = flow.every_run(self.root, self._listed)
        return flow.statuses_of(runs)

    def page(self, template: str, **given: Any) -> str:
        """A page, or a part of one: escaped, and without secrets."""
        return redact(self.environment.get_template(template).render(**given))

    def row_page(self, template: str, **given: Any) -> str:
        """A page that shows rows as they are, as `luthier inspect` does: that is its purpose."""
        return self.of_rows.get_template(template).render(**given)

"""What is shown at each address, as text."""

from collections.abc import Sequence
from typing import Any, get_args
from urllib.parse import urlencode

from luthier import flow
from luthier.core import jsonl
from luthier.data.inspect import visible
from luthier.flow.watching import MOVING
from luthier.report.curves import drawn, overlaid
from luthier.report.facts import facts
from luthier.report.page import report as page
from luthier.runs.state import State
from luthier.runs.status import Status
from luthier.runs.store import RunFolder
from luthier.web.answers import A_PAGE, Asked, answers
from luthier.web.compare import differences, scored
from luthier.web.site import Site
from luthier.web.stream import place

STATES: tuple[State, ...] = get_args(State)
ROWS_A_PAGE = 10
EVENTS = 30
SPLITS = ("train", "validation", "test")


def runs(site: Site, state: str, text: str, *, part: bool = False) -> str:
    """All runs, or those of a state and whose name or reason holds the text."""
    every = flow.statuses(site.root)
    found = [each for each in every if state in ("", each.state) and text.lower() in f"{each.name} {each.why} {each.host}".lower()]
    given: dict[str, Any] = {"found": found, "num": len(every), "root": site.root}
    return site.page("table.html" if part else "runs.html", states=STATES, state=state, text=text, **given)


def run(site: Site, name: str) -> str:
    """One run, at once: its curves and what they show are asked for by the page."""
    record = flow.record(str(site.run(name).path), diagnose=False)
    return site.page("run.html", r=record, name=name, tab="run", events=EVENTS, moving=MOVING)


def curves(site: Site, name: str) -> str:
    """The curves of a run as JSON, and the place that the stream goes on from."""
    series = site.series(site.run(name))
    return jsonl.dumps({"place": place(series), "charts": [each.to_json() for each in drawn(series)]})


def looked_at(site: Site, name: str) -> str:
    """What the run's curves show: findings, plan against fact, ranks."""
    run = site.run(name)
    record = flow.record(str(run.path), site.series(run))
    return site.page("looked_at.html", r=record, facts=facts(record), name=name)


def standing(site: Site, status: Status) -> str:
    """The part of a run's page that changes with each step."""
    return site.page("standing.html", status=status)


def rest(site: Site, run: RunFolder) -> str:
    """The part of a run's page that data, evaluations and verdict come to."""
    return site.page("rest.html", r=flow.record(str(run.path), diagnose=False), name=run.name)


def newest(site: Site, run: RunFolder) -> str:
    """The part of a run's page that changes with each event."""
    return site.page("events.html", found=flow.events(str(run.path)), most=EVENTS)


def rows(site: Site, name: str, split: str, start: int) -> str:
    """Rows as the model sees them: tokens, and which of them are trained on."""
    run = site.run(name)
    split, start = split if split in SPLITS else SPLITS[0], max(0, start)
    found = flow.rows(str(run.path), split, range(start, start + ROWS_A_PAGE))
    given = {"found": found, "split": split, "start": start, "most": ROWS_A_PAGE, "splits": SPLITS}
    return site.row_page("rows.html", name=name, tab="rows", visible=visible, **given)


def predictions(site: Site, name: str, asked: Asked) -> str:
    """Answers of the tuned model beside the base's."""
    found = answers(site.run(name), asked)
    before, after = (
        asked.model_copy(update={"start": start}).model_dump() for start in (max(0, asked.start - A_PAGE), asked.start + A_PAGE)
    )
    pages = {"before": urlencode(before), "after": urlencode(after)}
    return site.page("answers.html", name=name, tab="answers", found=found, asked=asked, **pages)


def report(site: Site, name: str) -> str:
    """report.html of the run as it is now; nothing is written."""
    run = site.run(name)
    return page(flow.record(str(run.path), site.series(run)))


def compare(site: Site, names: Sequence[str]) -> str:
    """Several runs: how they stand, and in what their recipes differ. Their curves are asked for by the page."""
    found = [flow.record(str(site.run(name).path), diagnose=False) for name in dict.fromkeys(names)]
    names = [each.run.name for each in found]
    query = urlencode([("run", name) for name in names])
    return site.page("compare.html", found=found, names=names, query=query, tasks=scored(found), differs=differences(found))


def compared_curves(site: Site, names: Sequence[str]) -> str:
    """The curves of several runs, laid over each other, as JSON."""
    return jsonl.dumps({"charts": [each.to_json() for each in overlaid({name: site.series(site.run(name)) for name in names})]})

"""What is shown at each address, as text."""

from collections.abc import Sequence
from typing import Any, get_args
from urllib.parse import urlencode

from luthier import flow
from luthier.core import files, jsonl
from luthier.core.files import Stamp
from luthier.data.inspect import visible
from luthier.flow.watching import status_of
from luthier.report.compare import compare as held_together
from luthier.report.curves import drawn, overlaid
from luthier.report.facts import facts
from luthier.report.page import report as page
from luthier.runs.held_out import held_out
from luthier.runs.state import State
from luthier.runs.status import Status
from luthier.watch.seen import Seen
from luthier.web.answers import A_PAGE, Asked, answers
from luthier.web.site import Site
from luthier.web.stream import Part, place

STATES: tuple[State, ...] = get_args(State)
ROWS_A_PAGE = 10
EVENTS = 30
SPLITS = ("train", "validation", "test")


def runs(site: Site, state: str, text: str, *, part: bool = False) -> str:
    """All runs, or those of a state and whose name or reason holds the text."""
    every = site.statuses()
    found = [each for each in every if state in ("", each.state) and text.lower() in f"{each.name} {each.why} {each.host}".lower()]
    given: dict[str, Any] = {"found": found, "num": len(every), "root": site.root}
    return site.page("table.html" if part else "runs.html", states=STATES, state=state, text=text, **given)


def run(site: Site, name: str) -> str:
    """One run, at once: its curves and what they show are asked for by the page."""
    record = flow.record_of(site.seen(name), diagnose=False)
    return site.page("run.html", r=record, name=name, tab="run", events=EVENTS)


def curves(site: Site, name: str) -> str:
    """The curves of a run as JSON, and the place that the stream goes on from."""
    run = site.seen(name)
    series = run.series()
    return jsonl.dumps({"place": place(series), "charts": [each.to_json() for each in drawn(series, held_out(run.events()))]})


def looked_at(site: Site, name: str) -> str:
    """What the run's curves show: findings, plan against fact, ranks."""
    record = flow.record_of(site.seen(name), diagnose=True)
    return site.page("looked_at.html", r=record, facts=facts(record), name=name)


def live(site: Site, run: Seen) -> dict[str, Part]:
    """The parts of a run's page that are told while it is open, by the id of their element."""

    def status() -> Status:
        return status_of(run.run, run.events(), ask_far=False)

    def rest() -> Stamp:
        found = run.run
        return files.stamp(found.data, found.environment, found.verdict, *found.path.glob("evaluations/*/scores.json"))

    return {
        "standing": Part(text=lambda: site.page("standing.html", status=status())),
        "acts": Part(text=lambda: site.page("acts.html", status=status(), name=run.run.name)),
        "events": Part(text=lambda: site.page("events.html", found=run.events(), most=EVENTS), of=lambda: len(run.events())),
        "rest": Part(text=lambda: site.page("rest.html", r=flow.record_of(run, diagnose=False), name=run.run.name), of=rest),
    }


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
    return page(flow.record_of(site.seen(name), diagnose=True))


def compare(site: Site, names: Sequence[str]) -> str:
    """Several runs: how they stand, and in what their recipes differ. Their curves are asked for by the page."""
    found = [flow.record_of(site.seen(name), diagnose=False) for name in dict.fromkeys(names)]
    names = [each.run.name for each in found]
    query = urlencode([("run", name) for name in names])
    compared = held_together(found) if found else None
    return site.page("compare.html", found=found, names=names, query=query, compared=compared)


def compared_curves(site: Site, names: Sequence[str]) -> str:
    """The curves of several runs, laid over each other, as JSON."""
    runs = {name: site.seen(name) for name in names}
    series, rewards = {name: run.series() for name, run in runs.items()}, {name: held_out(run.events()) for name, run in runs.items()}
    return jsonl.dumps({"charts": [each.to_json() for each in overlaid(series, rewards)]})
